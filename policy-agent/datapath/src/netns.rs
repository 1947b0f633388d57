//! The network namespaces that interfaces lead to.

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::netlink::ask;

/// Number, within this network namespace, of the one that an interface's other end is in (`IFLA_LINK_NETNSID`); `None` where
/// it is in this one, or the interface has no other end.
///
/// # Errors
/// What the kernel says; that there is no such interface.
pub(crate) fn behind(ifindex: u32) -> io::Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let (bytes, _) = ask(RouteNetlinkMessage::GetLink(message), 0)?.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(e) => Err(e.to_io()),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            Ok(link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkNetNsId(number) => u32::try_from(*number).ok(),
                _ => None,
            }))
        }
        _ => Ok(None),
    }
}
