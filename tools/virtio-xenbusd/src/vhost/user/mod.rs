// SPDX-License-Identifier: GPL-2.0-or-later
//! Devices that a vhost-user program serves. The daemon is the front-end.

mod kinds;
mod link;
mod relay;
mod session;
mod settings;
mod shadow;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;

pub use self::kinds::{Kind, of_id};
pub use self::link::RETRY;
use self::link::{Link, UserVring};
use self::relay::{finish, relay};
pub use self::session::Nobody;
use self::session::Session;
pub use self::settings::Settings;
use super::join::join;
use super::{accepted, device_features, ring_features};
use crate::config::Tuning;
use crate::config_space::ConfigSpace;
use crate::device::{Device, Resumption, Ring, SharedPool};
use crate::worker::Worker;

/// Device id of a file system.
const ID_FS: u32 = 26;

/// A device that a program serves.
struct User {
    kind: &'static Kind,
    link: Arc<Link>,
    config: ConfigSpace,
    /// What the program had when the device was opened.
    features: u64,
    /// Largest size of each queue.
    sizes: Vec<u16>,
}

/// Connects to the program and asks it what the guest can be offered.
///
/// # Errors
///
/// [`Nobody`] is there yet, or the program and the settings do not fit.
pub fn open(settings: &Settings, tuning: &Tuning) -> Result<Box<dyn Device>> {
    let kind = settings.r#type.0;
    let mut session = Session::connect(&settings.socket.0)?;
    let most = session.queues()?;
    let mut config = match session.config(kind.config.max(1))? {
        Some(config) => config,
        None => own_config(settings)?,
    };
    let requests = match kind.requests {
        Some(place) => requests(settings, tuning, place, most, &mut config)?,
        None => 0,
    };
    config.truncate(kind.config);
    let queues = kind.queues.len() + usize::from(requests);
    ensure!(
        most.is_none_or(|most| queues <= usize::from(most)),
        "a {} with {requests} request queues has {queues} queues, the vhost-user program only {}",
        kind.what,
        most.unwrap_or(0)
    );
    let sizes = vec![tuning.queue_size; queues];
    let config = ConfigSpace::new(&config)?;
    let name = tuning.name.clone();
    Ok(Box::new(User {
        kind,
        config: config.clone(),
        features: session.features,
        link: Link::new(name, settings, session, config, sizes.clone())?,
        sizes,
    }))
}

/// The configuration space of a device whose program has none.
fn own_config(settings: &Settings) -> Result<Vec<u8>> {
    let kind = settings.r#type.0;
    match (kind.config, &settings.tag) {
        (0, _) => Ok(Vec::new()),
        (len, Some(tag)) => {
            let mut config = tag.0.clone().into_bytes();
            config.resize(len, 0);
            Ok(config)
        }
        (_, None) if kind.id == ID_FS => {
            bail!("the vhost-user program knows no tag of the file system: set `tag`")
        }
        _ => bail!(
            "the vhost-user program does not tell the configuration of a {} (protocol feature \
             CONFIG)",
            kind.what
        ),
    }
}

/// The number of request queues, which is written to its `(offset, bytes)` in `config`.
fn requests(
    settings: &Settings,
    tuning: &Tuning,
    (offset, len): (usize, usize),
    most: Option<u16>,
    config: &mut [u8],
) -> Result<u16> {
    let kind = settings.r#type.0;
    let place = config
        .get_mut(offset..offset + len)
        .context("the vhost-user program has told too little of the configuration")?;
    let said = place
        .iter()
        .rev()
        .fold(0u64, |value, &byte| (value << 8) | u64::from(byte));
    let said = u16::try_from(said).unwrap_or(u16::MAX).max(1);
    let others = u16::try_from(kind.queues.len())?;
    // What a program tells of the configuration counts only if it tells it at all.
    let most = most.map_or(said, |most| most.saturating_sub(others));
    let requests = match settings.queues {
        Some(wanted) => {
            ensure!(
                wanted.0 <= most.max(1),
                "`queues = {}` of a {} is too much: the vhost-user program has {most}",
                wanted.0,
                kind.what
            );
            wanted.0
        }
        None => tuning.queues.min(most).max(1),
    };
    let bytes = u32::from(requests).to_le_bytes();
    for (to, from) in place.iter_mut().zip(bytes) {
        *to = from;
    }
    Ok(requests)
}

/// A queue that the program serves, which ends with this in any case: the guest may use the memory
/// for something else after.
struct Running {
    link: Arc<Link>,
    vring: Arc<UserVring>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Has been done, unless the thread has not begun or not come to its end.
        let _ = self.link.stop(&self.vring);
    }
}

impl Device for User {
    fn id(&self) -> u32 {
        self.kind.id
    }

    fn describe(&self) -> String {
        format!("{} of {}", self.kind.what, self.link.describe())
    }

    fn features(&self) -> u128 {
        device_features(self.features) & !self.kind.withheld
    }

    fn ring_features(&self) -> u128 {
        ring_features(self.features)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.sizes.clone()
    }

    fn queue_name(&self, index: u16) -> String {
        let index = usize::from(index);
        match self.kind.queues.get(index) {
            Some(&name) => name.into(),
            None => format!("request {}", index - self.kind.queues.len()),
        }
    }

    fn counts(&self, _index: u16) -> bool {
        false
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        if self.kind.fixed.contains(&(offset, data.len())) {
            let config = self.config.bytes();
            return match config.get(offset..offset + data.len()) == Some(data) {
                true => Ok(()),
                false => Err(Errno::EINVAL),
            };
        }
        // Libvhost-user takes a write that it does not like for the end of the connection.
        if !self.kind.writable.contains(&(offset, data.len())) {
            return Err(Errno::EINVAL);
        }
        self.link.write_config(offset, data)
    }

    fn connect(&mut self, pool: &SharedPool) -> Result<()> {
        self.link.connect(pool.clone());
        Ok(())
    }

    fn set_features(&mut self, features: u128) -> Result<(), Errno> {
        self.link.accept(accepted(features));
        Ok(())
    }

    fn resumption(&self, _index: u16) -> Resumption {
        match (self.kind.in_order, self.link.is_recorded()) {
            (true, _) => Resumption::InOrder,
            (false, true) => Resumption::Recorded,
            (false, false) => Resumption::Idle,
        }
    }

    fn start_queue(&mut self, ring: Ring) -> Result<Worker> {
        let link = Arc::clone(&self.link);
        let vring = link.start(&ring)?;
        let running = Running { link, vring };
        Worker::spawn(ring, move |mut ring, stop| {
            let UserVring { vring, shadow } = running.vring.as_ref();
            let result = match shadow {
                Some(shadow) => relay(&mut ring, &vring.events, shadow, stop),
                None => join(&mut ring, &vring.events, stop),
            };
            let result = match running.link.failure() {
                Some(why) if result.is_err() => Err(anyhow!(why)),
                _ => result,
            };
            let stopped = running.link.stop(&running.vring);
            let finished = shadow
                .as_ref()
                .map_or(Ok(()), |shadow| finish(&mut ring, shadow));
            result.and(stopped).and(finished)
        })
    }

    fn reset(&mut self) {
        self.link.reset();
    }

    fn is_quiet(&self) -> bool {
        self.link.is_quiet()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.link.close();
    }
}
