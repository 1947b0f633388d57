//! The network namespaces that interfaces lead to.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Number, within this network namespace, of the one that an interface's other end is in (`IFLA_LINK_NETNSID`); `None` where
/// it is in this one, or the interface has no other end.
///
/// # Errors
/// What the kernel says; that there is no such interface.
pub(crate) fn behind(ifindex: u32) -> io::Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let mut packet = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
    packet.header.flags = NLM_F_REQUEST;
    packet.finalize();
    let mut buffer = vec![0; packet.buffer_len()];
    packet.serialize(&mut buffer);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(&buffer, &SocketAddr::new(0, 0), 0)?;
    let (bytes, _) = socket.recv_from_full()?;
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
