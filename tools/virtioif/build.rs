// SPDX-License-Identifier: GPL-2.0-or-later
//! Makes `virtioif.rs` from `virtioif.h` with the `bindgen` program that the kernel uses too.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

const HEADER: &str = "../../include/xen/interface/io/virtioif.h";

fn main() {
    println!("cargo::rerun-if-changed={HEADER}");
    println!("cargo::rerun-if-env-changed=BINDGEN");

    let bindgen = env::var_os("BINDGEN").unwrap_or_else(|| "bindgen".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("virtioif.rs");

    // Layout tests are assertions at compile time.
    let status = Command::new(&bindgen)
        .args([HEADER, "--generate-cstr", "--no-doc-comments"])
        .args([
            "--allowlist-type",
            "virtio_xenbus_.*",
            "--allowlist-var",
            "VIRTIO_XENBUS_.*",
        ])
        .arg("--output")
        .arg(&out)
        .status();
    match status {
        Ok(status) if status.success() => (),
        Ok(status) => fail(&format!("{} {HEADER}: {status}", bindgen.to_string_lossy())),
        Err(error) => fail(&format!(
            "cannot run {}: {error}; install the package bindgen or set BINDGEN",
            bindgen.to_string_lossy()
        )),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
