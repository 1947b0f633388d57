//! Why a packet was dropped: one append-only list, the same in counters, events and the CLI.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// Why a packet was dropped. Numbers are never used again for something else.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $variant = $code,)*
        }

        impl DropReason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Name in metrics, events and output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The reason with this number.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The endpoint's policy is not in place (yet), or the slot belongs to no endpoint.
    Locked = 1, "locked";
    /// DEL was called for the endpoint.
    EndpointGone = 2, "endpoint_gone";
    /// No rule of the receiver's policies allows it.
    IngressDenied = 3, "ingress_denied";
    /// No rule of the sender's policies allows it.
    EgressDenied = 4, "egress_denied";
    /// An established flow that the rules now in force do not allow.
    FlowRevoked = 5, "flow_revoked";
    /// Sent from a MAC address that is not the pod's.
    SpoofedMac = 6, "spoofed_mac";
    /// Sent from an IP address that is not the pod's (ARP and neighbour discovery included).
    SpoofedAddress = 7, "spoofed_address";
    /// From the uplink, under an address that belongs to this node, its pods or a Service.
    ForgedSource = 8, "forged_source";
    /// A VLAN tag.
    Vlan = 9, "vlan";
    /// An EtherType other than IPv4, IPv6 and ARP.
    EtherType = 10, "ether_type";
    /// A header that is cut off or contradicts itself.
    Malformed = 11, "malformed";
    /// Loose or strict source routing, or a routing header with segments left.
    SourceRoute = 12, "source_route";
    /// More IPv6 extension headers than are looked at.
    ExtensionHeaders = 13, "extension_headers";
    /// A fragment whose first fragment has not passed, or is no longer known.
    FragmentUnknown = 14, "fragment_unknown";
    /// A fragment so made that it could overwrite the transport header.
    FragmentOverlap = 15, "fragment_overlap";
    /// Multicast or broadcast.
    Multicast = 16, "multicast";
    /// An ICMP error about no known flow.
    IcmpUnrelated = 17, "icmp_unrelated";
    /// Neighbour discovery that is not allowed: hop limit, target, router advertisement, redirect.
    NeighbourDiscovery = 18, "neighbour_discovery";
    /// A pod's packet to the overlay's port of a node.
    OverlayForbidden = 19, "overlay_forbidden";
    /// From the overlay, but not from a node's tunnel or not from inside that node's own addresses.
    OverlayForged = 20, "overlay_forged";
    /// The programs could not do their work (a map is missing or full): denied rather than opened.
    Internal = 21, "internal";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_round_trip() {
        for (i, a) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_code(*a as u16), Some(*a));
            for b in &DropReason::ALL[i + 1..] {
                assert_ne!(a.name(), b.name());
            }
        }
        assert_eq!(DropReason::from_code(0), None);
    }
}
