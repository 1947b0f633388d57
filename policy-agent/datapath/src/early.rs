//! XDP of the uplink: what need not reach the host's stack. See docs/decisions/0025.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::programs::Xdp;
use fairlead_common::maps::names;

use crate::map::Map;
use crate::pins::Pins;
use crate::{Datapath, Error, UplinkError, sys};

/// Where XDP looks at packets of the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Early {
    /// Nowhere.
    #[default]
    Off,
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the kernel, right after there is one: whatever the driver.
    Generic,
}

/// Names of links' pins begin so.
const LINKS: [(Early, &str); 2] = [(Early::Native, "early_native-"), (Early::Generic, "early_generic-")];

/// The program of this version, and the array that the trampoline jumps through.
pub(crate) struct EarlyPrograms {
    programs: Map<u32, u32>,
    mode: Early,
}

impl EarlyPrograms {
    /// Loads what the mode needs into its half, or leaves that empty.
    pub(crate) fn load(ebpf: &mut Ebpf, pins: &Pins, half: u32, mode: Early) -> Result<Self, Error> {
        let programs: Map<u32, u32> = Map::named(ebpf, names::EARLY_PROGRAMS)?;
        if mode == Early::Off {
            programs.remove(&half)?;
            return Ok(Self { programs, mode });
        }
        let pin = pins.frozen.join(names::EARLY);
        if !pin.exists() {
            let program = program(ebpf, "t_early")?;
            program.load()?;
            program.pin(&pin)?;
        }
        let program = program(ebpf, "early")?;
        program.load()?;
        programs.set(&half, &(program.fd()?.as_fd().as_raw_fd() as u32))?;
        Ok(Self { programs, mode })
    }

    /// Takes out the program of a half that is no longer in force.
    pub(crate) fn retire(&self, half: u32) -> Result<(), Error> {
        Ok(self.programs.remove(&half)?)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Error> {
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Object(name.to_owned()))?;
    Ok(program.try_into()?)
}

impl Datapath {
    /// Attaches the trampoline of XDP to an uplink as this agent is to, in the mode that it is to, or takes it away.
    /// It stays when the agent ends. That it is there already is no error.
    ///
    /// # Errors
    /// Where the driver cannot, or somebody else's program is there. Then tc alone judges.
    pub fn attach_early(&mut self, ifindex: u32) -> Result<(), Error> {
        let folder = self.links();
        fs::create_dir_all(&folder).map_err(Error::at(&folder))?;
        let mode = self.early().mode;
        for (other, start) in LINKS.into_iter().filter(|(other, _)| *other != mode) {
            let pin = folder.join(format!("{start}{ifindex}"));
            if let Some(link) = link(&pin)? {
                detach(&link, &pin)?;
                tracing::debug!("XDP of interface {ifindex}: no longer {other:?}");
            }
        }
        let (start, flags) = match mode {
            Early::Off => return Ok(()),
            Early::Native => (LINKS[0].1, sys::XDP_NATIVE),
            Early::Generic => (LINKS[1].1, sys::XDP_GENERIC),
        };
        let trampoline = self.frozen().join(names::EARLY);
        let id = sys::obj_get(&trampoline)
            .and_then(|fd| sys::program_id(fd.as_fd()))
            .map_err(Error::at(&trampoline))?;
        let pin = folder.join(format!("{start}{ifindex}"));
        if let Some(link) = link(&pin)? {
            if sys::link_of_xdp(link.as_fd()).map_err(Error::at(&pin))? == (id, ifindex) {
                return Ok(());
            }
            // Of an interface that had this index before, or that was detached.
            detach(&link, &pin)?;
        }
        sys::obj_get(&trampoline)
            .and_then(|program| sys::link_xdp(program.as_fd(), ifindex, flags))
            .and_then(|link| sys::obj_pin(link.as_fd(), &pin))
            .map_err(|source| UplinkError::Early { ifindex, source }.into())
    }
}

/// The link that is pinned there, if one is.
fn link(pin: &Path) -> Result<Option<OwnedFd>, Error> {
    match sys::obj_get(pin) {
        Ok(link) => Ok(Some(link)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::at(pin)(e)),
    }
}

/// Takes a link off its interface at once: the kernel lets go of one that is only unpinned some time later, and until
/// then nothing else can be attached there.
fn detach(link: &OwnedFd, pin: &Path) -> Result<(), Error> {
    sys::link_detach(link.as_fd()).and_then(|()| fs::remove_file(pin)).map_err(Error::at(pin))
}
