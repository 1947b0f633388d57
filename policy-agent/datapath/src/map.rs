//! Maps with types.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map as AyaMap, MapData};

use crate::Error;
use crate::sys::{self, Plain};
use crate::writes::{self, Write};

/// A map of the kernel whose sizes have been checked.
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    name: &'static str,
    max_entries: u32,
    types: PhantomData<fn(K) -> V>,
}

/// A failed operation on a map.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {operation}: {source}")]
pub struct MapError {
    map: &'static str,
    operation: &'static str,
    #[source]
    source: io::Error,
}

impl MapError {
    pub(crate) fn new(map: &'static str, operation: &'static str, source: io::Error) -> Self {
        Self { map, operation, source }
    }

    /// Whether the map has no room.
    pub fn is_full(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Plain + Copy, V: Plain + Copy> Map<K, V> {
    /// Takes a map's descriptor; the kernel's sizes must be those of `K` and `V`.
    pub(crate) fn new(name: &'static str, fd: OwnedFd) -> Result<Self, MapError> {
        let error = |operation, source| MapError { map: name, operation, source };
        let info = sys::map_info(fd.as_fd()).map_err(|e| error("info", e))?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            let source = io::Error::other(format!(
                "key and value have {} and {} bytes, not {} and {}",
                info.key_size,
                info.value_size,
                size_of::<K>(),
                size_of::<V>()
            ));
            return Err(error("layout", source));
        }
        Ok(Self { fd, name, max_entries: info.max_entries, types: PhantomData })
    }

    /// A map of a loaded object.
    pub(crate) fn named(ebpf: &Ebpf, name: &'static str) -> Result<Self, Error> {
        let map = ebpf.map(name).and_then(map_data).ok_or_else(|| Error::Object(name.to_owned()))?;
        let fd = map.fd().as_fd().try_clone_to_owned().map_err(Error::at(Path::new(name)))?;
        Ok(Self::new(name, fd)?)
    }

    fn error(&self, operation: &'static str) -> impl Fn(io::Error) -> MapError {
        let map = self.name;
        move |source| MapError { map, operation, source }
    }

    /// Number of elements that fit.
    pub(crate) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// The map's memory, for array maps made with `BPF_F_MMAPABLE`.
    pub(crate) fn shared(&self) -> Result<sys::Shared, MapError> {
        // The kernel rounds elements up to 8 bytes.
        let element = size_of::<V>().next_multiple_of(8);
        let length = (element * self.max_entries as usize).next_multiple_of(4096);
        sys::Shared::map(self.fd.as_fd(), length).map_err(self.error("mmap"))
    }

    /// The element of a key.
    pub(crate) fn get(&self, key: &K, mut value: V) -> Result<Option<V>, MapError> {
        let found = sys::lookup(self.fd.as_fd(), key, std::slice::from_mut(&mut value))
            .map_err(self.error("lookup"))?;
        Ok(found.then_some(value))
    }

    /// The elements of a key on all CPUs of a per-CPU map; `V` is a multiple of 8 bytes long.
    pub(crate) fn get_per_cpu(&self, key: &K, zero: V, cpus: usize) -> Result<Option<Vec<V>>, MapError> {
        let mut values = vec![zero; cpus];
        let found = sys::lookup(self.fd.as_fd(), key, &mut values).map_err(self.error("lookup"))?;
        Ok(found.then_some(values))
    }

    /// Writes an element.
    pub(crate) fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        let write = || sys::update(self.fd.as_fd(), key, std::slice::from_ref(value));
        writes::make(Write::Element(self.name), write).map_err(self.error("update"))
    }

    /// Writes an element on all CPUs of a per-CPU map.
    pub(crate) fn set_per_cpu(&self, key: &K, values: &[V]) -> Result<(), MapError> {
        sys::update(self.fd.as_fd(), key, values).map_err(self.error("update"))
    }

    /// Writes many elements.
    pub(crate) fn set_many(&self, keys: &[K], values: &[V]) -> Result<(), MapError> {
        if keys.len() == 1 || writes::are_observed() {
            return keys.iter().zip(values).try_for_each(|(key, value)| self.set(key, value));
        }
        sys::update_batch(self.fd.as_fd(), keys, values).map_err(self.error("update"))
    }

    /// Removes an element, if it is there.
    pub(crate) fn remove(&self, key: &K) -> Result<(), MapError> {
        let write = || sys::delete(self.fd.as_fd(), key);
        writes::make(Write::Element(self.name), write).map_err(self.error("delete"))
    }

    /// All keys. Keys that come or go meanwhile may be missed.
    pub(crate) fn keys(&self, zero: K) -> Result<Vec<K>, MapError> {
        let mut keys = Vec::new();
        let mut last = None;
        while keys.len() <= self.max_entries as usize {
            match sys::next_key(self.fd.as_fd(), last.as_ref(), zero).map_err(self.error("next key"))? {
                Some(key) => {
                    keys.push(key);
                    last = Some(key);
                }
                None => break,
            }
        }
        Ok(keys)
    }
}

/// What all kinds of maps have.
pub(crate) fn map_data(map: &AyaMap) -> Option<&MapData> {
    match map {
        AyaMap::Array(data)
        | AyaMap::HashMap(data)
        | AyaMap::LpmTrie(data)
        | AyaMap::LruHashMap(data)
        | AyaMap::PerCpuArray(data)
        | AyaMap::PerCpuHashMap(data)
        | AyaMap::ProgramArray(data)
        | AyaMap::RingBuf(data) => Some(data),
        _ => None,
    }
}
