//! The older tables of iptables, which nf_tables knows nothing of: `linux/netfilter_ipv4/ip_tables.h` and its like
//! for IPv6.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, the same numbers for both families.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of `struct ipt_getinfo` and of what stands before the entries in `struct ipt_get_entries`.
const INFO: usize = 84;
const BEFORE_ENTRIES: usize = 40;
/// Where the former has the offsets of the chains' first entries and of their policies, by hook.
const HOOKS: usize = 36;
const POLICIES: usize = 56;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// `-NF_DROP - 1` and `-NF_ACCEPT - 1`.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
/// Length of an interface's name.
const NAME: usize = 16;
/// Bytes of `struct xt_entry_target` without content, and where it has its name, which ends with a zero.
const TARGET: usize = 32;
const TARGET_NAME: std::ops::Range<usize> = 2..31;

/// What differs between the families.
struct Family {
    name: &'static str,
    domain: libc::c_int,
    level: libc::c_int,
    /// Lists the tables that are in use: asking for others would make them.
    in_use: &'static str,
    /// Where an entry holds the name of the interface that packets come in by; the other's, and masks of both, follow.
    interface: usize,
    /// Where what it compares ends.
    compared: usize,
    /// Where it holds the offset of its target; that of the next entry follows.
    target: usize,
    /// Its length without matches of extensions.
    bare: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "iptables",
        domain: libc::AF_INET,
        level: libc::IPPROTO_IP,
        in_use: "/proc/thread-self/net/ip_tables_names",
        interface: 16,
        compared: 84,
        target: 88,
        bare: 112,
    },
    Family {
        name: "ip6tables",
        domain: libc::AF_INET6,
        level: libc::IPPROTO_IPV6,
        in_use: "/proc/thread-self/net/ip6_tables_names",
        interface: 64,
        compared: 136,
        target: 140,
        bare: 168,
    },
];

/// A table of a family, as the kernel has it.
struct Table {
    family: &'static Family,
    info: Vec<u8>,
    entries: Vec<u8>,
}

/// Programs (`iptables`, `ip6tables`) whose chain FORWARD drops or refuses what no rule accepts, but for those that let
/// pass, by name, what comes from and goes to interfaces that begin with `interface`.
///
/// # Errors
/// What the kernel says.
pub(super) fn closed_forward(interface: &str) -> io::Result<Vec<&'static str>> {
    let tables = in_use("filter")?;
    Ok(tables.iter().filter(|table| table.is_closed(interface)).map(|table| table.family.name).collect())
}

/// Names of the chains that somebody has made, of both families and in all tables.
///
/// # Errors
/// What the kernel says.
pub(super) fn chains() -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for name in ["filter", "nat", "mangle", "raw"] {
        for table in in_use(name)? {
            let heads = table.offsets().filter(|at| table.target_name(*at).as_deref() == Some("ERROR"));
            all.extend(heads.filter_map(|at| {
                let content = table.target(at)? + TARGET;
                Some(name_of(table.entries.get(content..content + TARGET - 2)?))
            }));
        }
    }
    Ok(all)
}

/// The tables of this name of those families that have one.
fn in_use(name: &str) -> io::Result<Vec<Table>> {
    let mut all = Vec::new();
    for family in &FAMILIES {
        // Not there where the kernel knows no such tables.
        let in_use = fs::read_to_string(family.in_use).unwrap_or_default();
        if in_use.lines().any(|table| table == name) {
            all.push(Table::read(family, name)?);
        }
    }
    Ok(all)
}

impl Table {
    fn read(family: &'static Family, name: &str) -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let socket =
            unsafe { libc::socket(family.domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: nobody else has this descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let mut info = vec![0; INFO];
        info[..name.len()].copy_from_slice(name.as_bytes());
        get(&socket, family, GET_INFO, &mut info)?;
        let size = number(&info, INFO - 4).unwrap_or(0);
        let mut entries = vec![0; BEFORE_ENTRIES + size as usize];
        entries[..name.len()].copy_from_slice(name.as_bytes());
        entries[32..36].copy_from_slice(&size.to_ne_bytes());
        get(&socket, family, GET_ENTRIES, &mut entries)?;
        entries.drain(..BEFORE_ENTRIES);
        Ok(Self { family, info, entries })
    }

    fn short(&self, at: usize) -> Option<usize> {
        Some(usize::from(u16::from_ne_bytes(self.entries.get(at..at + 2)?.try_into().ok()?)))
    }

    /// Offsets of all entries.
    fn offsets(&self) -> impl Iterator<Item = usize> {
        let first = (!self.entries.is_empty()).then_some(0);
        std::iter::successors(first, |at| {
            let length = self.short(at + self.family.target + 2).filter(|length| *length > 0)?;
            Some(at + length).filter(|next| *next < self.entries.len())
        })
    }

    /// Where an entry's target is.
    fn target(&self, at: usize) -> Option<usize> {
        Some(at + self.short(at + self.family.target)?)
    }

    /// Name of an entry's target: of standard ones empty.
    fn target_name(&self, at: usize) -> Option<String> {
        let target = self.target(at)?;
        Some(name_of(self.entries.get(target + TARGET_NAME.start..target + TARGET_NAME.end)?))
    }

    /// Verdict of an entry with a standard target.
    fn verdict(&self, at: usize) -> Option<i32> {
        let standard = self.target_name(at)?.is_empty();
        standard.then(|| number(&self.entries, self.target(at)? + TARGET)).flatten().map(u32::cast_signed)
    }

    /// Whether an entry drops or refuses whatever comes to it.
    fn ends(&self, at: usize) -> bool {
        let Family { compared, target, bare, .. } = *self.family;
        let compares = self.entries.get(at..at + compared).is_none_or(|all| all.iter().any(|b| *b != 0));
        !compares
            && self.short(at + target) == Some(bare)
            && (self.verdict(at) == Some(DROP) || self.target_name(at).as_deref() == Some("REJECT"))
    }

    fn is_closed(&self, interface: &str) -> bool {
        let [Some(first), Some(policy)] =
            [HOOKS, POLICIES].map(|hooks| number(&self.info, hooks + 4 * FORWARD).map(|at| at as usize))
        else {
            return false;
        };
        let ends = self.verdict(policy) == Some(DROP)
            || self.offsets().any(|at| (first..policy).contains(&at) && self.ends(at));
        let accepting = || self.offsets().filter(|at| self.verdict(*at) == Some(ACCEPT));
        // By the interface that packets come from, and by that which they go to.
        let accepts = |place| accepting().any(|at| self.names(at, place, interface.as_bytes()));
        ends && !(accepts(0) && accepts(1))
    }

    /// Whether an entry is about interfaces that begin so: those that packets come from, or (1) go to.
    fn names(&self, at: usize, place: usize, interface: &[u8]) -> bool {
        let name = at + self.family.interface + place * NAME;
        let mask = name + 2 * NAME;
        let length = interface.len();
        self.entries.get(name..name + length) == Some(interface)
            && self.entries.get(mask..mask + length).is_some_and(|mask| mask.iter().all(|b| *b == 0xff))
            && self.entries.get(mask + length) == Some(&0)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Text up to the first zero.
fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Asks with what stands in `buffer`, and reads the answer into it.
fn get(socket: &OwnedFd, family: &Family, what: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes `length` bytes of a buffer that is that long.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), family.level, what, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
