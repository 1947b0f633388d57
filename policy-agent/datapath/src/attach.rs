//! Attached programs: checking those on pods' interfaces, attaching those of the uplink.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::tc::{TcAttachOptions, TcError};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use fairlead_common::maps::names;
use netlink_packet_core::{NLM_F_DUMP, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use crate::endpoints::RegisterError;
use crate::netlink::ask;
use crate::{Datapath, Error, sys};

/// Minor numbers of the clsact qdisc (`TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`).
const INGRESS: u16 = 0xfff2;
const EGRESS: u16 = 0xfff3;

/// Hooks of tcx (`BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`).
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// The uplink or the overlay device could not be given its programs.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// There is no such interface.
    #[error("interface {0}: {1}")]
    Interface(String, #[source] io::Error),
    /// Attaching failed.
    #[error("interface {interface}: {source}")]
    Attach {
        /// Name of the interface.
        interface: String,
        /// What aya said.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// XDP could not be attached.
    #[error("XDP on interface {ifindex}: {source}")]
    Early {
        /// Index of the interface.
        ifindex: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The link could not be kept.
    #[error("interface {interface}: keeping the link: {what}")]
    Keep {
        /// Name of the interface.
        interface: String,
        /// What went wrong.
        what: String,
    },
}

impl Datapath {
    /// Ids of the pinned trampolines of pods' interfaces: `from_pod`, `to_pod`.
    pub fn trampoline_ids(&self) -> Result<[u32; 2], Error> {
        let id = |name: &str| {
            let path = self.frozen().join(name);
            sys::obj_get(&path).and_then(|fd| sys::program_id(fd.as_fd())).map_err(Error::at(&path))
        };
        Ok([id(names::FROM_POD)?, id(names::TO_POD)?])
    }

    /// Whether an interface carries this agent's trampolines, and nothing before them: by clsact, or by
    /// tcx where the pod is shaped (docs/decisions/0013).
    pub(crate) fn check_trampolines(&self, ifindex: u32) -> Result<(), RegisterError> {
        let [from_pod, to_pod] = self.trampoline_ids()?;
        let hooks = [(INGRESS, TCX_INGRESS, "ingress", from_pod), (EGRESS, TCX_EGRESS, "egress", to_pod)];
        for (parent, tcx, hook, wanted) in hooks {
            // What tcx has runs before the filters of clsact.
            let mut ids = match sys::tcx_programs(ifindex, tcx) {
                // A kernel without tcx.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
                other => other,
            }
            .map_err(|e| RegisterError::Programs { ifindex, what: format!("{hook}: {e}") })?;
            if ids.is_empty() {
                ids = attached(ifindex, parent)
                    .map_err(|e| RegisterError::Programs { ifindex, what: format!("{hook}: {e}") })?;
            }
            if ids.first() != Some(&wanted) {
                let what = format!("{hook} carries programs {ids:?}, not {wanted}");
                return Err(RegisterError::Programs { ifindex, what });
            }
        }
        Ok(())
    }

    /// Attaches the uplink's trampolines, which stay when the agent ends. That they are there already
    /// is no error.
    pub fn attach_uplink(&mut self, ifindex: u32) -> Result<(), Error> {
        self.attach_device(ifindex, names::FROM_UPLINK, names::TO_UPLINK)
    }

    /// As [`Self::attach_uplink`], for the device of the overlay.
    pub fn attach_overlay(&mut self, ifindex: u32) -> Result<(), Error> {
        self.attach_device(ifindex, names::FROM_OVERLAY, names::TO_OVERLAY)
    }

    fn attach_device(&self, ifindex: u32, ingress: &str, egress: &str) -> Result<(), Error> {
        let interface =
            interface_name(ifindex).map_err(|e| UplinkError::Interface(ifindex.to_string(), e))?;
        let folder = self.links();
        fs::create_dir_all(&folder).map_err(Error::at(&folder))?;
        for (name, attach_type) in [(ingress, TcAttachType::Ingress), (egress, TcAttachType::Egress)] {
            self.attach_long_lived(&interface, ifindex, name, attach_type, &folder)?;
        }
        Ok(())
    }

    /// Folder of the pins of links.
    pub(crate) fn links(&self) -> std::path::PathBuf {
        self.frozen().join("links")
    }

    fn attach_long_lived(
        &self,
        interface: &str,
        ifindex: u32,
        name: &str,
        attach_type: TcAttachType,
        folder: &Path,
    ) -> Result<(), Error> {
        let attach = |source| UplinkError::Attach { interface: interface.to_owned(), source };
        let keep = |what: String| UplinkError::Keep { interface: interface.to_owned(), what };
        let pin = self.frozen().join(name);
        let mut program = SchedClassifier::from_pin(&pin)?;
        let id = program.info()?.id();
        let hook = if attach_type == TcAttachType::Ingress { TCX_INGRESS } else { TCX_EGRESS };
        let there = match sys::tcx_programs(ifindex, hook) {
            Ok(there) => Some(there),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => None,
            // Not to be taken for a kernel without tcx: packets would be judged twice.
            Err(e) => return Err(UplinkError::Interface(interface.to_owned(), e).into()),
        };
        if let Some(there) = there {
            if there.contains(&id) {
                return Ok(());
            }
            let link = program
                .attach_with_options(interface, attach_type, TcAttachOptions::TcxOrder(LinkOrder::first()))
                .map_err(attach)?;
            let link = program.take_link(link).map_err(attach)?;
            let link: FdLink = link.try_into().map_err(|e| keep(format!("{e}")))?;
            let pin = folder.join(format!("{name}-{ifindex}"));
            // A pin of an interface that had this index before, or of a link that was detached.
            match fs::remove_file(&pin) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::at(&pin)(e));
                }
                _ => {}
            }
            link.pin(&pin).map_err(|e| keep(e.to_string()))?;
            return Ok(());
        }
        // Kernels before 6.6: cls_bpf, which stays by itself.
        let parent = if attach_type == TcAttachType::Ingress { INGRESS } else { EGRESS };
        let there = attached(ifindex, parent).unwrap_or_default();
        if there.contains(&id) {
            return Ok(());
        }
        match aya::programs::tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            // What the kernel says of a qdisc that is there.
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(e) => return Err(keep(e.to_string()).into()),
        }
        let link = program
            .attach_with_options(interface, attach_type, TcAttachOptions::Netlink(Default::default()))
            .map_err(attach)?;
        let link = program.take_link(link).map_err(attach)?;
        std::mem::forget(link);
        Ok(())
    }
}

fn interface_name(ifindex: u32) -> io::Result<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the function asks for.
    let result = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if result.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the function has ended the name with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// Ids of the BPF programs that cls_bpf runs at a hook of an interface, in their order.
fn attached(ifindex: u32, minor: u16) -> io::Result<Vec<u32>> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(ifindex).map_err(io::Error::other)?;
    message.header.parent = TcHandle { major: 0xffff, minor };
    let socket = ask(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)?;
    let mut ids = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(ids),
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    ids.extend(program_id(&filter));
                }
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn program_id(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}
