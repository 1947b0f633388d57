//! The parts of bpf(2) and of the kernel's memory model that aya does not offer.
//!
//! Sources: `include/uapi/linux/bpf.h`, Documentation/bpf/maps.rst, membarrier(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;

/// The largest member of `union bpf_attr` that is used here.
#[repr(C, align(8))]
struct Attr([u8; 128]);

fn bpf(command: u32, fields: &[(usize, &[u8])]) -> io::Result<i32> {
    let mut attr = Attr([0; 128]);
    for (offset, bytes) in fields {
        attr.0[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    bpf_attr(command, &mut attr)
}

fn bpf_attr(command: u32, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: the attribute is as large as said, and the pointers in it are to memory that the
    // callers keep alive and that is as large as the map's key and value sizes, which they checked.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr.0, attr.0.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn pointer<T: ?Sized>(value: &T) -> [u8; 8] {
    (std::ptr::from_ref(value).cast::<()>() as u64).to_ne_bytes()
}

fn fd_bytes(fd: BorrowedFd<'_>) -> [u8; 4] {
    fd.as_raw_fd().to_ne_bytes()
}

/// Types that can be keys or values of maps: any bytes are a value, none of them is padding.
///
/// # Safety
///
/// The type has no padding, no invalid bit patterns and no pointers.
pub(crate) unsafe trait Plain: Sized {}

// SAFETY: integers and arrays of them.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: arrays have no padding of their own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {$(
        // SAFETY: `repr(C)` of integers without padding; the sizes are pinned by a test beside them.
        unsafe impl Plain for $type {}
    )*};
}

plain!(
    fairlead_common::maps::AddressInfo,
    fairlead_common::maps::Cidr4,
    fairlead_common::maps::Cidr6,
    fairlead_common::maps::DropEvent,
    fairlead_common::maps::DropKey,
    fairlead_common::maps::Endpoint,
    fairlead_common::maps::EventLosses,
    fairlead_common::maps::Exit,
    fairlead_common::maps::FlowKey<u32>,
    fairlead_common::maps::FlowKey<[u32; 4]>,
    fairlead_common::maps::LastingFlow,
    fairlead_common::maps::LastingPending<u32>,
    fairlead_common::maps::LastingPending<[u32; 4]>,
    fairlead_common::maps::Passed,
    fairlead_common::maps::PendingKey,
    fairlead_common::maps::PortSet,
    fairlead_common::maps::RowKey,
    fairlead_common::maps::StateEntry,
);

/// A value out of bytes that a program wrote; `None` where their number is another's.
pub(crate) fn read_plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the type has, any of which are a value of it; read unaligned.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Ids of the programs that tcx runs at a hook of an interface, in their order. Asks for nothing more: what a program
/// of that id is, the kernel tells `CAP_SYS_ADMIN` alone, which an agent in a container has not.
///
/// `hook` is `BPF_TCX_INGRESS` (46) or `BPF_TCX_EGRESS` (47).
///
/// # Errors
/// `EINVAL` where the kernel has no tcx.
pub(crate) fn tcx_programs(ifindex: u32, hook: u32) -> io::Result<Vec<u32>> {
    // The kernel runs 64 at most.
    let mut ids = [0_u32; 64];
    let mut attr = Attr([0; 128]);
    // target_ifindex 0, attach_type 4, query_flags 8, attach_flags 12, prog_ids 16, count 24.
    attr.0[0..4].copy_from_slice(&ifindex.to_ne_bytes());
    attr.0[4..8].copy_from_slice(&hook.to_ne_bytes());
    attr.0[16..24].copy_from_slice(&(ids.as_mut_ptr() as u64).to_ne_bytes());
    attr.0[24..28].copy_from_slice(&(ids.len() as u32).to_ne_bytes());
    match bpf_attr(PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // Nothing was ever attached there.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let [a, b, c, d] = [attr.0[24], attr.0[25], attr.0[26], attr.0[27]];
    let count = u32::from_ne_bytes([a, b, c, d]) as usize;
    Ok(ids.into_iter().take(count).collect())
}

/// Raw look-up: `value` must be as long as the kernel's value (times CPUs for per-CPU maps).
pub(crate) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &mut [V]) -> io::Result<bool> {
    let target = (value.as_mut_ptr() as u64).to_ne_bytes();
    match bpf(MAP_LOOKUP_ELEM, &[(0, &fd_bytes(map)), (8, &pointer(key)), (16, &target)]) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Writes an element; `value` as for [`lookup`].
pub(crate) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &[V]) -> io::Result<()> {
    let source = (value.as_ptr() as u64).to_ne_bytes();
    bpf(MAP_UPDATE_ELEM, &[(0, &fd_bytes(map)), (8, &pointer(key)), (16, &source)]).map(drop)
}

/// Writes many elements.
pub(crate) fn update_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    debug_assert_eq!(keys.len(), values.len());
    let mut done = 0;
    while done < keys.len() {
        // batch.in_batch 0, out_batch 8, keys 16, values 24, count 32, map_fd 36, flags 40 and 48.
        let keys_at = (keys[done..].as_ptr() as u64).to_ne_bytes();
        let values_at = (values[done..].as_ptr() as u64).to_ne_bytes();
        let count = u32::try_from(keys.len() - done).unwrap_or(u32::MAX);
        let mut attr = Attr([0; 128]);
        attr.0[16..24].copy_from_slice(&keys_at);
        attr.0[24..32].copy_from_slice(&values_at);
        attr.0[32..36].copy_from_slice(&count.to_ne_bytes());
        attr.0[36..40].copy_from_slice(&fd_bytes(map));
        let result = bpf_attr(MAP_UPDATE_BATCH, &mut attr);
        let [a, b, c, d] = [attr.0[32], attr.0[33], attr.0[34], attr.0[35]];
        let written = u32::from_ne_bytes([a, b, c, d]) as usize;
        match result {
            Ok(_) => done += written.max(1),
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => done += written,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes an element unless there is one; `false` where there is. Key and value are as long as the
/// map's.
pub(crate) fn insert_bytes(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    let fields = [(0, &fd_bytes(map)[..]), (8, &pointer(key)), (16, &pointer(value))];
    match bpf(MAP_UPDATE_ELEM, &[&fields[..], &[(24, &BPF_NOEXIST.to_ne_bytes())]].concat()) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Element by element, the keys and values of a hash map. What comes or goes meanwhile may be missed.
pub(crate) fn each_element(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    /// More than one bucket of the kernel's table ever holds.
    const BATCH: u32 = 4096;
    let info = map_info(map)?;
    let (key, value) = (info.key_size as usize, info.value_size as usize);
    let mut keys = vec![0u8; key * BATCH as usize];
    let mut values = vec![0u8; value * BATCH as usize];
    let mut position = 0u32;
    let mut first = true;
    loop {
        // batch.in_batch 0, out_batch 8, keys 16, values 24, count 32, map_fd 36, flags 40 and 48.
        let mut attr = Attr([0; 128]);
        let at = (&raw mut position as u64).to_ne_bytes();
        if !first {
            attr.0[..8].copy_from_slice(&at);
        }
        first = false;
        attr.0[8..16].copy_from_slice(&at);
        attr.0[16..24].copy_from_slice(&(keys.as_mut_ptr() as u64).to_ne_bytes());
        attr.0[24..32].copy_from_slice(&(values.as_mut_ptr() as u64).to_ne_bytes());
        attr.0[32..36].copy_from_slice(&BATCH.to_ne_bytes());
        attr.0[36..40].copy_from_slice(&fd_bytes(map));
        let result = bpf_attr(MAP_LOOKUP_BATCH, &mut attr);
        let last = match result {
            Ok(_) => false,
            // The rest, or nothing any more.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) => return Err(e),
        };
        let [a, b, c, d] = [attr.0[32], attr.0[33], attr.0[34], attr.0[35]];
        let count = u32::from_ne_bytes([a, b, c, d]).min(BATCH) as usize;
        for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)).take(count) {
            each(key, value)?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Removes an element; that it is not there is no error.
pub(crate) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    match bpf(MAP_DELETE_ELEM, &[(0, &fd_bytes(map)), (8, &pointer(key))]) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
        _ => Ok(()),
    }
}

/// The key after `key`, the first for `None`.
pub(crate) fn next_key<K: Plain + Copy>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
    mut next: K,
) -> io::Result<Option<K>> {
    let after = key.map_or([0; 8], pointer);
    let target = (&raw mut next as u64).to_ne_bytes();
    match bpf(MAP_GET_NEXT_KEY, &[(0, &fd_bytes(map)), (8, &after), (16, &target)]) {
        Ok(_) => Ok(Some(next)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a pinned object.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let at = (path.as_ptr() as u64).to_ne_bytes();
    let fd = bpf(OBJ_GET, &[(0, &at)])?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let at = (path.as_ptr() as u64).to_ne_bytes();
    bpf(OBJ_PIN, &[(0, &at), (8, &fd_bytes(fd))]).map(drop)
}

/// The first words of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// What the kernel says of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    object_info(map, &mut info)?;
    Ok(info)
}

/// The kernel's id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_prog_info` starts with type and id.
    let mut info = [0u32; 2];
    object_info(program, &mut info)?;
    Ok(info[1])
}

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
pub(crate) const XDP_GENERIC: u32 = 2;
pub(crate) const XDP_NATIVE: u32 = 4;

/// Attaches a program of XDP to an interface, for as long as the descriptor or a pin of it is there.
pub(crate) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    const LINK_CREATE: u32 = 28;
    const BPF_XDP: u32 = 37;
    let words = [ifindex, BPF_XDP, flags].map(u32::to_ne_bytes);
    let fd = bpf(LINK_CREATE, &[(0, &fd_bytes(program)), (4, &words[0]), (8, &words[1]), (12, &words[2])])?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a link off what it is attached to; whoever still holds it holds nothing.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    const LINK_DETACH: u32 = 34;
    bpf(LINK_DETACH, &[(0, &fd_bytes(link))]).map(drop)
}

/// Program and interface of a link of XDP; no interface where that is gone.
pub(crate) fn link_of_xdp(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // `struct bpf_link_info`: type, id, program, a gap, and for XDP the interface's index.
    let mut info = [0u32; 5];
    object_info(link, &mut info)?;
    Ok((info[2], info[4]))
}

fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).unwrap_or(0).to_ne_bytes();
    let at = (std::ptr::from_mut(info) as u64).to_ne_bytes();
    bpf(OBJ_GET_INFO_BY_FD, &[(0, &fd_bytes(fd)), (4, &length), (8, &at)]).map(drop)
}

/// Waits until every program that may have started before this call has ended.
pub(crate) fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: no pointers are passed. The kernel runs synchronize_rcu(), and BPF programs of tc and
    // XDP run within RCU read-side sections.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The elements of an array map made with `BPF_F_MMAPABLE`, shared with the programs.
pub(crate) struct Shared {
    base: *mut u8,
    length: usize,
}

// SAFETY: the memory belongs to the mapping; all access goes through atomics.
unsafe impl Send for Shared {}

impl Shared {
    /// Maps all of an array map's memory, `length` bytes.
    pub(crate) fn map(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), length })
    }

    fn at<T>(&self, index: usize) -> io::Result<*mut T> {
        let offset = index * size_of::<T>();
        if offset + size_of::<T>() > self.length {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: within the mapping, and aligned: the mapping starts at a page.
        Ok(unsafe { self.base.add(offset).cast() })
    }

    /// Writes a word so that no program sees half of it, after all writes before.
    pub(crate) fn store_u16(&self, index: usize, value: u16) -> io::Result<()> {
        // SAFETY: `at` checked bounds and alignment; all other access is atomic or the kernel's.
        unsafe { std::sync::atomic::AtomicU16::from_ptr(self.at(index)?) }
            .store(value, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// As [`Self::store_u16`].
    pub(crate) fn store_u32(&self, index: usize, value: u32) -> io::Result<()> {
        // SAFETY: as in `store_u16`.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at(index)?) }
            .store(value, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// As [`Self::store_u16`].
    pub(crate) fn store_u64(&self, index: usize, value: u64) -> io::Result<()> {
        // SAFETY: as in `store_u16`.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.at(index)?) }
            .store(value, std::sync::atomic::Ordering::Release);
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}
