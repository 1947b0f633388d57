//! Loading the eBPF object: frozen pins once, everything else anew at each start.
//!
//! An agent that starts loads its own copy of the programs with empty policy tables into the half of
//! the program array that is not in force, fills the tables, and then turns all hooks of the node to
//! that half by one write. So a start, an upgrade and a change of the tables' layout are one thing,
//! and the tables of the agent before need not be understood. See docs/decisions/0004; what must outlive
//! an agent (flows, counters) is in `lasting`.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::panic::resume_unwind;
use std::thread;

use aya::maps::Map as AyaMap;
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use fairlead_common::maps::{
    HOOK_FROM_OVERLAY, HOOK_FROM_POD, HOOK_FROM_UPLINK, HOOK_TO_OVERLAY, HOOK_TO_POD, HOOK_TO_UPLINK, HOOKS,
    names,
};

use crate::early::EarlyPrograms;
use crate::lasting::{LastingMaps, TakeOver};
use crate::map::{Map, map_data};
use crate::pins::Pins;
use crate::{Error, Options, sys};

/// Trampolines: name of the program in the object, name of the pin.
const TRAMPOLINES: [(&str, &str); 6] = [
    ("t_from_pod", names::FROM_POD),
    ("t_to_pod", names::TO_POD),
    ("t_from_uplink", names::FROM_UPLINK),
    ("t_to_uplink", names::TO_UPLINK),
    ("t_from_overlay", names::FROM_OVERLAY),
    ("t_to_overlay", names::TO_OVERLAY),
];

/// Programs of this version and their hooks. What leaves the node is judged alike by whatever device.
const PROGRAMS: [(&str, &[u32]); 5] = [
    ("from_pod", &[HOOK_FROM_POD]),
    ("to_pod", &[HOOK_TO_POD]),
    ("from_uplink", &[HOOK_FROM_UPLINK]),
    ("to_uplink", &[HOOK_TO_UPLINK, HOOK_TO_OVERLAY]),
    ("from_overlay", &[HOOK_FROM_OVERLAY]),
];

/// Maps that never change.
const FROZEN: [&str; 4] = [names::PROGRAMS, names::EARLY_PROGRAMS, names::ACTIVE, names::KILLED];

/// A loaded object.
pub(crate) struct Object {
    ebpf: Ebpf,
    pub(crate) pins: Pins,
    programs: Map<u32, u32>,
    pub(crate) early: EarlyPrograms,
    active: Map<u32, u32>,
    /// The half of the program array that this object's programs are in.
    half: u32,
    take_over: TakeOver,
}

impl Object {
    /// Loads programs and maps; nothing is in force yet.
    pub(crate) fn load(options: &Options) -> Result<Self, Error> {
        let Options { bpffs, build, capacities, .. } = options;
        if build.object.is_empty() {
            return Err(Error::NoObject);
        }
        let pins = Pins::new(bpffs);
        for folder in [&pins.frozen, &pins.lasting] {
            fs::create_dir_all(folder).map_err(Error::at(folder))?;
        }
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for name in FROZEN {
            loader.map_pin_path(name, pins.frozen.join(name));
        }
        let lasting = LastingMaps::find(&pins.lasting, build.lasting, capacities)?;
        for (name, pin) in lasting.pins() {
            loader.map_pin_path(name, pin);
        }
        for (name, entries) in [
            ("flows4", capacities.flows),
            ("flows6", capacities.flows),
            ("rows", capacities.rows),
            ("sets", capacities.sets),
            ("peers4", capacities.peers),
            ("peers6", capacities.peers),
            ("cidrs4", capacities.cidrs),
            ("cidrs6", capacities.cidrs),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(build.object)?;
        for (program, pin) in TRAMPOLINES {
            let pin = pins.frozen.join(pin);
            if pin.exists() {
                continue;
            }
            let program = classifier(&mut ebpf, program)?;
            program.load()?;
            program.pin(&pin)?;
        }
        let programs = Map::named(&ebpf, names::PROGRAMS)?;
        let active: Map<u32, u32> = Map::named(&ebpf, names::ACTIVE)?;
        let half = 1 - active.get(&0, 0)?.unwrap_or(0).min(1);
        let early = EarlyPrograms::load(&mut ebpf, &pins, half, options.early)?;
        verify(&mut ebpf)?;
        for (name, hooks) in PROGRAMS {
            let program = classifier(&mut ebpf, name)?;
            let fd = program.fd()?.as_fd().as_raw_fd();
            for hook in hooks {
                programs.set(&(half * HOOKS + hook), &(fd as u32))?;
            }
        }
        let take_over = lasting.take_over(|name| Some(map_data(ebpf.map(name)?)?.fd().as_fd()))?;
        Ok(Self { ebpf, pins, programs, early, active, half, take_over })
    }

    /// A map by its name.
    pub(crate) fn map<K: sys::Plain + Copy, V: sys::Plain + Copy>(
        &self,
        name: &'static str,
    ) -> Result<Map<K, V>, Error> {
        Map::named(&self.ebpf, name)
    }

    /// A map to be used through aya, once.
    pub(crate) fn take_map(&mut self, name: &str) -> Option<AyaMap> {
        self.ebpf.take_map(name)
    }

    /// Descriptor of a program of this version, for tests by BPF_PROG_TEST_RUN.
    pub(crate) fn program(&self, name: &str) -> Result<OwnedFd, Error> {
        let program = self.ebpf.program(name).ok_or_else(|| Error::Object(name.to_owned()))?;
        let fd = match program {
            Program::Xdp(program) => program.fd()?,
            program => <&SchedClassifier>::try_from(program)?.fd()?,
        };
        fd.as_fd().try_clone_to_owned().map_err(Error::at(&self.pins.lasting))
    }

    /// Turns all hooks to this object's programs, and takes the others out.
    pub(crate) fn activate(&self) -> Result<(), Error> {
        self.active.set(&0, &self.half)?;
        // A packet that read the old half must find the programs there.
        sys::grace_period().map_err(Error::at(&self.pins.frozen))?;
        for hook in 0..HOOKS {
            self.programs.remove(&((1 - self.half) * HOOKS + hook))?;
        }
        self.early.retire(1 - self.half)
    }

    /// What is to be taken over from an agent with other layouts, once this object is in force.
    pub(crate) fn take_over(&self) -> &TakeOver {
        &self.take_over
    }

    /// Whether this object's programs are in force.
    pub(crate) fn is_active(&self) -> Result<bool, Error> {
        Ok(self.active.get(&0, 0)? == Some(self.half))
    }
}

/// Loads the [`PROGRAMS`], side by side: the kernel verifies each on the thread that asks for it, and of an agent's start
/// that is the longest part.
fn verify(ebpf: &mut Ebpf) -> Result<(), Error> {
    let mut programs = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        if PROGRAMS.iter().any(|(of, _)| *of == name) {
            programs.push(<&mut SchedClassifier>::try_from(program)?);
        }
    }
    thread::scope(|scope| {
        let mut started = Vec::new();
        for program in programs {
            let thread = thread::Builder::new().name("verifying".to_owned());
            started.push(thread.spawn_scoped(scope, || program.load()).map_err(ProgramError::IOError));
        }
        for thread in started {
            thread?.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        Ok(())
    })
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Object(name.to_owned()))?;
    Ok(program.try_into()?)
}

impl Object {
    /// Pins the map of the node's state in the place of the last agent's, in one step.
    pub(crate) fn pin_state<K, V>(&self, state: &Map<K, V>) -> Result<(), Error> {
        let pin = self.pins.lasting.join(names::STATE);
        let new = self.pins.lasting.join("state_new");
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::at(&new)(e)),
            _ => {}
        }
        sys::obj_pin(state.as_fd(), &new).map_err(Error::at(&new))?;
        fs::rename(&new, &pin).map_err(Error::at(&pin))
    }
}
