//! What in a node's environment stands in the way of pods' packets, and what to do about it.
//!
//! It looks and changes nothing. What the agent puts right by itself is no trouble; what others have put there, or what
//! is missing, is.

mod xtables;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fairlead_api::NodeInfo;
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rtnetlink::{Handle, RouteMessageBuilder};
use serde::Serialize;

use super::install::PLUGIN;
use super::uninstall::{Places, shown};
use crate::conflist;
use crate::network::links::{self, Interface, Interfaces, OVERLAY};
use crate::network::{Closed, LAST_METRIC, OVERHEAD, PROTOCOL, Ruleset, wrong};

/// How pods' interfaces on the host begin.
const PODS: &str = "fl";
/// UDP port of the overlay unless set otherwise.
const VXLAN_PORT: u16 = 8472;
/// How far the clock may be behind this executable: time zones have been written into files before.
const TOLERANCE: Duration = Duration::from_secs(86_400);

/// Interfaces that other plugins make: how their names begin, whether that is all, and whose they are.
const OTHERS: [(&str, bool, &str); 9] = [
    ("flannel.", false, "Flannel"),
    ("cni0", true, "Flannel or the bridge plugin"),
    ("cali", false, "Calico"),
    ("vxlan.calico", true, "Calico"),
    ("cilium_", false, "Cilium"),
    ("weave", true, "Weave Net"),
    ("kube-bridge", true, "kube-router"),
    ("antrea-gw0", true, "Antrea"),
    ("ovn-k8s-mp0", true, "OVN-Kubernetes"),
];

/// Chains that other plugins make: how their names begin, and whose they are.
const CHAINS: [(&str, &str); 6] = [
    ("FLANNEL-", "Flannel"),
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("WEAVE-", "Weave Net"),
    ("KUBE-ROUTER-", "kube-router"),
    ("ANTREA-", "Antrea"),
];

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Nothing stands in the way.
    Fine,
    /// Worth knowing.
    Note,
    /// It stands in the way.
    Trouble,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which check: stable.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Findings of one check.
struct Check {
    name: &'static str,
    findings: Vec<Finding>,
}

impl Check {
    fn new(name: &'static str) -> Self {
        Self { name, findings: Vec::new() }
    }

    fn push(&mut self, severity: Severity, what: impl Into<String>, remedy: impl Into<String>) {
        let (what, remedy) = (what.into(), Some(remedy.into()));
        self.findings.push(Finding { check: self.name, severity, what, remedy });
    }

    fn trouble(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Trouble, what, remedy);
    }

    /// All that was found, or that it is fine.
    fn or_fine(mut self, what: &str) -> Vec<Finding> {
        if self.findings.is_empty() {
            let (check, what) = (self.name, what.to_owned());
            self.findings.push(Finding { check, severity: Severity::Fine, what, remedy: None });
        }
        self.findings
    }
}

/// Looks at everything. `uplink`: what the agent says that it is, where one runs.
///
/// # Errors
/// Where the node cannot be looked at.
pub async fn examine(places: &Places, uplink: Option<&str>) -> io::Result<Vec<Finding>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let interfaces = links::interfaces(&handle).await.map_err(io::Error::other)?;
    let routes = routes(&handle).await?;
    let tunnels = tunnels(&handle).await?;
    driver.abort();
    // As the agent has left it, where it has run here.
    let node: Option<NodeInfo> =
        fs::read(places.run.node()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let uplink = uplink
        .map(str::to_owned)
        .or_else(|| default_interface(&routes, &interfaces))
        .and_then(|name| interfaces.0.values().find(|i| i.name == name));
    let mut all = kernel(places);
    all.extend(clock(SystemTime::now(), built()));
    all.extend(firewall(interfaces.0.values().any(|i| i.name == OVERLAY)));
    if let Some(uplink) = uplink {
        all.extend(sysctls(uplink, node.as_ref()));
        all.extend(mtu(uplink, &interfaces, node.as_ref()));
    } else {
        let mut check = Check::new("uplink");
        check.trouble(
            "no interface towards other nodes: no default route, and no agent that knows better",
            "give the node an address and a route, or name the interface in the setting uplink",
        );
        all.extend(check.findings);
    }
    all.extend(other_plugins(places, &interfaces, &tunnels));
    all.extend(foreign_routes(&routes));
    all.extend(executables(places));
    Ok(all)
}

fn kernel(places: &Places) -> Vec<Finding> {
    let mut check = Check::new("kernel");
    for feature in fairlead_datapath::missing_features() {
        check.trouble(
            format!("the kernel lacks {feature}, or this process may not use it"),
            "run as root on a kernel that has it (tested: 6.18)",
        );
    }
    let parent = places.bpffs.parent().unwrap_or(&places.bpffs);
    if !statfs(parent).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        check.trouble(
            format!("{} is no BPF file system", parent.display()),
            format!("fairlead mount-bpffs {0}, or: mount -t bpf bpf {0}", parent.display()),
        );
    }
    check.or_fine("has what Fairlead needs, BPF file system included")
}

/// When this executable was made: the clock cannot be before.
fn built() -> Option<SystemTime> {
    fs::metadata(std::env::current_exe().ok()?).ok()?.modified().ok()
}

fn clock(now: SystemTime, built: Option<SystemTime>) -> Vec<Finding> {
    let mut check = Check::new("clock");
    if built.is_some_and(|built| built.duration_since(now).is_ok_and(|behind| behind > TOLERANCE)) {
        check.trouble(
            "the clock is behind the day on which this executable was made: certificates of the API server will not be \
             valid yet",
            "set the clock, and let chrony or systemd-timesyncd keep it",
        );
    }
    check.or_fine("not behind this executable")
}

fn firewall(overlay: bool) -> Vec<Finding> {
    let mut check = Check::new("firewall");
    let said = "what a program loads (firewalld, ufw) must be told to that program, too";
    match Ruleset::read() {
        Ok(rules) => {
            for Closed { family, table, chain } in rules.closed_forward(PODS) {
                check.trouble(
                    format!(
                        "nftables: chain {chain} of table {family} {table} stops forwarded packets that no rule accepts; {said}"
                    ),
                    format!(
                        "nft insert rule {family} {table} {chain} iifname \"{PODS}*\" accept; \
                         nft insert rule {family} {table} {chain} oifname \"{PODS}*\" accept"
                    ),
                );
            }
            let closed = if overlay { rules.closed_input(VXLAN_PORT) } else { Vec::new() };
            for Closed { family, table, chain } in closed {
                check.push(
                    Severity::Note,
                    format!(
                        "nftables: chain {chain} of table {family} {table} stops what comes for the node and no rule accepts, \
                         and none of them names the overlay's port"
                    ),
                    format!(
                        "unless other nodes are let in as such: \
                         nft insert rule {family} {table} {chain} udp dport {VXLAN_PORT} accept"
                    ),
                );
            }
        }
        Err(e) => check.trouble(
            format!("nf_tables cannot be read: {e}"),
            "run as root; where the kernel has it as a module: modprobe nf_tables",
        ),
    }
    match xtables::closed_forward(PODS) {
        Ok(programs) => {
            for program in programs {
                check.trouble(
                    format!("{program} (legacy): chain FORWARD stops packets that no rule accepts; {said}"),
                    format!(
                        "{program}-legacy -w -I FORWARD -i {PODS}+ -j ACCEPT; \
                         {program}-legacy -w -I FORWARD -o {PODS}+ -j ACCEPT"
                    ),
                );
            }
        }
        Err(e) => {
            check.trouble(format!("the tables of iptables (legacy) cannot be read: {e}"), "run as root")
        }
    }
    check.or_fine("no chain stops forwarded packets by default, or it makes an exception of pods")
}

fn sysctls(uplink: &Interface, node: Option<&NodeInfo>) -> Vec<Finding> {
    let mut check = Check::new("sysctl");
    let ipv6 = node.is_none_or(|node| node.pod_cidrs.iter().any(|cidr| cidr.is_ipv6()));
    for (name, is, right) in wrong(&uplink.name, ipv6) {
        let dotted = name.replace('/', ".");
        if node.is_some() {
            check.trouble(
                format!(
                    "net.{dotted} is {is:?}, though the agent has set it to {right}: somebody sets it back"
                ),
                format!(
                    "sysctl -w net.{dotted}={right}, and look for it in /etc/sysctl.d and in cloud agents"
                ),
            );
        } else {
            let what = format!("net.{dotted} is {is:?}");
            check.push(
                Severity::Note,
                what,
                format!("none: the agent sets it to {right}, an uninstall back"),
            );
        }
    }
    check.or_fine("forwarding, reverse path filter and router advertisements are as needed")
}

fn mtu(uplink: &Interface, interfaces: &Interfaces, node: Option<&NodeInfo>) -> Vec<Finding> {
    let mut check = Check::new("mtu");
    let overlay = interfaces.0.values().find(|i| i.name == OVERLAY);
    let overhead =
        overlay.map_or(0, |overlay| OVERHEAD[usize::from(!overlay.addresses.iter().any(IpAddr::is_ipv4))]);
    let room = uplink.mtu.saturating_sub(overhead);
    if let Some(node) = node {
        if node.mtu > room {
            let through = if overhead == 0 { "" } else { " through the overlay" };
            check.trouble(
                format!(
                    "pods get an MTU of {}, but {} with its {} takes no more than {room}{through}",
                    node.mtu, uplink.name, uplink.mtu
                ),
                format!("take the setting mtu away, or set it to {room} at most; then make pods anew"),
            );
        }
        let pods = interfaces.0.values().filter(|i| i.name.len() == 15 && i.name.starts_with(PODS));
        let wide = pods.filter(|pod| pod.mtu > node.mtu.min(room)).count();
        if wide > 0 {
            check.push(
                Severity::Note,
                format!(
                    "{wide} pods have interfaces with a larger MTU than new ones: from before it changed"
                ),
                "make them anew; until then path MTU discovery tells them, packet by packet",
            );
        }
    }
    check.or_fine("pods' packets fit the uplink")
}

fn other_plugins(places: &Places, interfaces: &Interfaces, tunnels: &[(String, u16)]) -> Vec<Finding> {
    let mut check = Check::new("otherPlugins");
    for (severity, what) in conflist::others(&places.cni_conf_dir).unwrap_or_default() {
        let severity = if severity { Severity::Trouble } else { Severity::Note };
        check.push(severity, what, "uninstall that plugin, or remove the file once it is gone");
    }
    for interface in interfaces.0.values() {
        let known = OTHERS.iter().find(|(name, whole, _)| {
            if *whole { interface.name == *name } else { interface.name.starts_with(name) }
        });
        if let Some((_, _, whose)) = known {
            check.trouble(
                format!("interface {} is left from {whose}", interface.name),
                format!("uninstall it, delete its pods, then: ip link del {}", interface.name),
            );
        }
    }
    // What cannot be read is the firewall's trouble.
    let nft = Ruleset::read().map(|rules| rules.chains().collect::<Vec<_>>()).unwrap_or_default();
    let chains: Vec<String> = nft.into_iter().chain(xtables::chains().unwrap_or_default()).collect();
    for (prefix, whose) in CHAINS {
        let number = chains.iter().filter(|chain| chain.starts_with(prefix)).count();
        if number > 0 {
            check.trouble(
                format!("{number} chains of iptables or nftables are left from {whose}, whose names begin with {prefix}"),
                "uninstall it, then restart the node: they are gone",
            );
        }
    }
    if !interfaces.0.values().any(|i| i.name == OVERLAY) {
        for (name, port) in tunnels.iter().filter(|(_, port)| *port == VXLAN_PORT) {
            check.trouble(
                format!("VXLAN device {name} has UDP port {port}, which the overlay needs for itself"),
                format!("ip link del {name}, or another port in the setting vxlanPort"),
            );
        }
    }
    check.or_fine("nothing of other plugins was found")
}

/// Routes of others that win over the agent's, to the same pods.
fn foreign_routes(routes: &[RouteMessage]) -> Vec<Finding> {
    let mut check = Check::new("routes");
    let metric = |route: &RouteMessage| {
        let metric = route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        metric.unwrap_or(0)
    };
    let key = |route: &RouteMessage| (u8::from(route.header.address_family), shown(route));
    let main = routes.iter().filter(|r| r.header.table == 254);
    let ours: BTreeMap<_, _> =
        main.clone().filter(|r| r.header.protocol == PROTOCOL).map(|r| (key(r), metric(r))).collect();
    for route in main.filter(|r| r.header.protocol != PROTOCOL) {
        if ours.get(&key(route)).is_some_and(|own| *own != LAST_METRIC && metric(route) < *own) {
            let to = shown(route);
            check.trouble(
                format!("somebody else's route to {to} goes before the agent's"),
                format!(
                    "ip route del {to} metric {}, and end whoever sets it; or routing: none",
                    metric(route)
                ),
            );
        }
    }
    check.or_fine("no route of somebody else's takes pods' packets another way")
}

fn executables(places: &Places) -> Vec<Finding> {
    let mut check = Check::new("executables");
    let runs =
        |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let folder = &places.cni_bin_dir;
    if !runs(&folder.join(PLUGIN)) {
        check.trouble(
            format!("{} is not there, or cannot be run", folder.join(PLUGIN).display()),
            format!("fairlead install --to {}, or the setting cniBinDir", folder.display()),
        );
    }
    if !runs(&folder.join("loopback")) {
        check.trouble(
            format!(
                "{} is not there, which container runtimes call for each pod",
                folder.join("loopback").display()
            ),
            "install the CNI project's plugins there (package containernetworking-plugins)",
        );
    }
    check.or_fine("the runtime finds its plugins")
}

async fn routes(handle: &Handle) -> io::Result<Vec<RouteMessage>> {
    let mut all = Vec::new();
    for query in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let routes = handle.route().get(query).execute();
        all.extend(routes.try_collect::<Vec<_>>().await.map_err(io::Error::other)?);
    }
    Ok(all)
}

fn default_interface(routes: &[RouteMessage], interfaces: &Interfaces) -> Option<String> {
    let default = routes.iter().filter(|r| r.header.destination_prefix_length == 0 && r.header.table == 254);
    let index = default.flat_map(|r| &r.attributes).find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    Some(interfaces.0.get(&index?)?.name.clone())
}

/// VXLAN devices and their UDP ports.
async fn tunnels(handle: &Handle) -> io::Result<Vec<(String, u16)>> {
    let mut all = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
        let (mut name, mut port) = (String::new(), None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(n) => name.clone_from(n),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        let LinkInfo::Data(InfoData::Vxlan(parts)) = info else { continue };
                        port = parts.iter().find_map(|p| match p {
                            InfoVxlan::Port(port) => Some(*port),
                            _ => None,
                        });
                    }
                }
                _ => {}
            }
        }
        all.extend(port.map(|port| (name, port)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_behind_is_told_from_one_that_is_right() {
        let built = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
        let found = |now, built| clock(now, built)[0].severity;
        assert_eq!(found(built + Duration::from_secs(1), Some(built)), Severity::Fine);
        assert_eq!(found(built - TOLERANCE, Some(built)), Severity::Fine);
        assert_eq!(found(built - TOLERANCE - Duration::from_secs(1), Some(built)), Severity::Trouble);
        assert_eq!(found(SystemTime::UNIX_EPOCH, None), Severity::Fine);
    }
}
