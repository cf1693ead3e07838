// SPDX-License-Identifier: GPL-2.0

//! The module parameters of `parameters.c`.

use super::bindings;

/// Which of its values `address_mode` has: 0 for `auto`, then `pool`, `grant`, `machine`.
pub(crate) fn address_mode() -> usize {
    // SAFETY: Reads what is only written before the module is initialised.
    let position = unsafe { bindings::vxb_address_mode() };

    usize::try_from(position).unwrap_or(0)
}
