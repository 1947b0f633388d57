//! Maps that outlive an agent, and how one with other layouts takes over from the one before.
//!
//! Each is pinned as `NAME-LAYOUT`. Pins of the same name with another layout, or of another capacity, are
//! an older or a newer agent's. Its programs may be in force until this agent's are, so nothing may be
//! missed in between: while flows are taken over, programs that do not find a flow look into the old map
//! ([`STATE_TAKE_OVER`](fairlead_common::maps::STATE_TAKE_OVER)); and once no program of the old kind
//! runs any more, everything is copied. See docs/decisions/0006.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use fairlead_common::address::Address;
use fairlead_common::maps::{
    FirstFragment, FlowKey, Lasting, LastingFlow, LastingPending, PendingKey, SLOT_NONE, SLOT_SETTLED,
    TAKEN_OVER,
};

use crate::options::Capacities;
use crate::sys::{self, Plain};
use crate::{Error, MapError};

/// Pins of one lasting map.
struct Pins {
    map: Lasting,
    own: PathBuf,
    /// Of other layouts or capacities; the one that programs look into is the last.
    others: Vec<PathBuf>,
}

/// The pins that there are before this agent's maps are made.
pub(crate) struct LastingMaps(Vec<Pins>);

impl LastingMaps {
    /// Looks at the pins in `folder`.
    pub(crate) fn find(folder: &Path, maps: &[Lasting], capacities: &Capacities) -> Result<Self, Error> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::at(folder))? {
            names.extend(entry.map_err(Error::at(folder))?.file_name().into_string());
        }
        names.sort();
        let mut found = Vec::new();
        for map in maps {
            let own = folder.join(format!("{}-{}", map.name, map.layout));
            let mut others: Vec<_> = names
                .iter()
                .filter(|name| name.rsplit_once('-').is_some_and(|(of, _)| of == map.name))
                .map(|name| folder.join(name))
                .filter(|pin| *pin != own)
                .collect();
            others.extend(set_aside(&own, map, capacities)?);
            found.push(Pins { map: *map, own, others });
        }
        Ok(Self(found))
    }

    /// Name and pin of each map for the loader, which takes what is pinned and pins what is not.
    pub(crate) fn pins(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.0.iter().flat_map(|pins| {
            let old = pins.others.last().filter(|pin| can_be_read(pins.map.name, pin));
            let old = old.and_then(|pin| Some((old_name(pins.map.name)?, pin.as_path())));
            [(pins.map.name, pins.own.as_path())].into_iter().chain(old)
        })
    }

    /// What is to be taken over into maps that are loaded now.
    pub(crate) fn take_over<'a>(
        self,
        loaded: impl Fn(&'static str) -> Option<BorrowedFd<'a>>,
    ) -> Result<TakeOver, Error> {
        let clone = |name| {
            let map = loaded(name).ok_or_else(|| Error::Object(name.to_owned()))?;
            map.try_clone_to_owned().map_err(Error::at(Path::new(name)))
        };
        let mut take_over = TakeOver {
            maps: Vec::new(),
            pins: Vec::new(),
            pending: [clone("pending4")?, clone("pending6")?],
        };
        for pins in self.0 {
            for pin in pins.others {
                if can_be_read(pins.map.name, &pin) {
                    take_over.maps.push(OldMap {
                        name: pins.map.name,
                        old: sys::obj_get(&pin).map_err(Error::at(&pin))?,
                        new: clone(pins.map.name)?,
                    });
                }
                take_over.pins.push(pin);
            }
        }
        Ok(take_over)
    }
}

/// Renames this layout's pin of the flows where its capacity is not the one wanted: the loader would take
/// it as it is. Returns what it is called now.
fn set_aside(own: &Path, map: &Lasting, capacities: &Capacities) -> Result<Option<PathBuf>, Error> {
    if !matches!(map.name, "flows4" | "flows6") {
        return Ok(None);
    }
    let there = match sys::obj_get(own) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::at(own)(e)),
    };
    let info = sys::map_info(there.as_fd()).map_err(Error::at(own))?;
    if info.max_entries == capacities.flows {
        return Ok(None);
    }
    let aside = own.with_file_name(format!("{}-of_{}", map.name, info.max_entries));
    fs::rename(own, &aside).map_err(Error::at(own))?;
    Ok(Some(aside))
}

fn old_name(name: &str) -> Option<&'static str> {
    TAKEN_OVER.iter().find(|(new, _)| *new == name).map(|(_, old)| *old)
}

/// Key size and the least value size of a map that can be taken over.
fn sizes(name: &str) -> Option<(usize, usize)> {
    const fn of<K, V>() -> (usize, usize) {
        (size_of::<K>(), size_of::<V>())
    }
    Some(match name {
        "flows4" => of::<FlowKey<u32>, LastingFlow>(),
        "flows6" => of::<FlowKey<[u32; 4]>, LastingFlow>(),
        "pending4" => of::<PendingKey, LastingPending<u32>>(),
        "pending6" => of::<PendingKey, LastingPending<[u32; 4]>>(),
        "fragments4" => (20, size_of::<FirstFragment>()),
        "fragments6" => (44, size_of::<FirstFragment>()),
        _ => return None,
    })
}

/// Whether what is pinned begins as all layouts of this map do.
fn can_be_read(name: &str, pin: &Path) -> bool {
    let info = sys::obj_get(pin).and_then(|map| sys::map_info(map.as_fd()));
    match (sizes(name), info) {
        (Some((key, value)), Ok(info)) => info.key_size as usize == key && info.value_size as usize >= value,
        _ => false,
    }
}

/// A map of an agent with other layouts, and the one that takes its place.
struct OldMap {
    name: &'static str,
    old: OwnedFd,
    new: OwnedFd,
}

/// What is to be taken over, and the pins that are in the way afterwards.
pub(crate) struct TakeOver {
    maps: Vec<OldMap>,
    pins: Vec<PathBuf>,
    /// Maps `pending4` and `pending6`.
    pending: [OwnedFd; 2],
}

impl TakeOver {
    /// Whether programs must look into old maps.
    pub(crate) fn is_needed(&self) -> bool {
        !self.maps.is_empty()
    }

    /// Copies everything, once no program writes into the old maps any more. What the new ones hold of a
    /// flow is newer.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let [pending4, pending6] = &self.pending;
        for map in &self.maps {
            let result = match map.name {
                "flows4" => map.copy(|key, value| is_pending::<u32>(pending4.as_fd(), key, value)),
                "flows6" => map.copy(|key, value| is_pending::<[u32; 4]>(pending6.as_fd(), key, value)),
                "pending4" => map.copy_pending::<u32>(),
                "pending6" => map.copy_pending::<[u32; 4]>(),
                _ => map.copy(|_, _| Ok(false)),
            };
            result.map_err(|source| MapError::new(map.name, "take over", source))?;
        }
        Ok(())
    }

    /// Removes the pins of maps that nobody needs any more.
    pub(crate) fn unpin(&self) -> Result<(), Error> {
        for pin in &self.pins {
            match fs::remove_file(pin) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::at(pin)(e)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl OldMap {
    /// The value of an element of the old map as the new one has it.
    fn converter(&self) -> io::Result<impl Fn(&[u8]) -> Vec<u8> + use<>> {
        let size = sys::map_info(self.new.as_fd())?.value_size as usize;
        Ok(move |value: &[u8]| {
            let mut value = value.to_vec();
            value.resize(size, 0);
            value
        })
    }

    fn copy(&self, skip: impl Fn(&[u8], &[u8]) -> io::Result<bool>) -> io::Result<()> {
        let converted = self.converter()?;
        sys::each_element(self.old.as_fd(), |key, value| {
            if !skip(key, value)? {
                sys::insert_bytes(self.new.as_fd(), key, &converted(value))?;
            }
            Ok(())
        })
    }

    /// As [`Self::copy`], for flows whose places others may have taken meanwhile.
    fn copy_pending<A: Address + Plain>(&self) -> io::Result<()>
    where
        FlowKey<A>: Plain,
    {
        let converted = self.converter()?;
        sys::each_element(self.old.as_fd(), |at, value| {
            let (Some(at), Some(key)) = (prefix::<PendingKey>(at), prefix::<FlowKey<A>>(value)) else {
                return Ok(());
            };
            let places = key.places().map(|place| PendingKey { place, ..at });
            for place in &places {
                if key_at::<A>(self.new.as_fd(), place)?.is_some_and(|there| there.same(&key)) {
                    return Ok(());
                }
            }
            for place in &places {
                if sys::insert_bytes(self.new.as_fd(), &bytes(place), &converted(value))? {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Whether a flow that the old map has as answered was opened anew meanwhile.
fn is_pending<A: Address + Plain>(pending: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool>
where
    FlowKey<A>: Plain,
{
    let (Some(key), Some(flow)) = (prefix::<FlowKey<A>>(key), prefix::<LastingFlow>(value)) else {
        return Ok(false);
    };
    for slot in [flow.slots & 0xffff, flow.slots >> 16, SLOT_SETTLED] {
        if slot == SLOT_NONE {
            continue;
        }
        for place in key.places() {
            if key_at::<A>(pending, &PendingKey { slot, place })?.is_some_and(|there| there.same(&key)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Key of the flow that a place holds.
fn key_at<A>(pending: BorrowedFd<'_>, place: &PendingKey) -> io::Result<Option<FlowKey<A>>>
where
    FlowKey<A>: Plain,
{
    let mut value = vec![0u8; sys::map_info(pending)?.value_size as usize];
    let found = sys::lookup(pending, place, &mut value)?;
    Ok(if found { prefix(&value) } else { None })
}

fn prefix<T: Plain>(bytes: &[u8]) -> Option<T> {
    sys::read_plain(bytes.get(..size_of::<T>())?)
}

fn bytes(place: &PendingKey) -> [u8; 8] {
    let [a, b, c, d] = place.slot.to_ne_bytes();
    let [e, f, g, h] = place.place.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}
