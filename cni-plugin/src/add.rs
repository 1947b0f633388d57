//! ADD: all of it or nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use fairlead_api::client::{Asked, Client, ClientError, Connection, endpoint_path};
use fairlead_api::{Attachment, EndpointStatus, ErrorCode, Mac, NodeInfo, RunDir};
use fairlead_ipam::Owner;
use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, State};

use crate::bpf::{self, Tcx, Trampolines};
use crate::config::{Addresses, Config};
use crate::delegate::Delegate;
use crate::environment::Environment;
use crate::error::{CniError, code};
use crate::ledger::{self, Ledger, Wanted, host_ifname, owner_of};
use crate::log::Log;
use crate::netlink::{Netlink, NetlinkError, Request};
use crate::netns::Netns;
use crate::result::{Dns, Interface, Ip, Route, Success};
use crate::unlink;
use crate::version::CniVersion;
use crate::wire;

/// What the agent gets beyond its own time limit before it counts as stuck.
const GRACE: Duration = Duration::from_millis(250);
/// How long undoing waits for the agent.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long the kernel may take to find that both ends are up.
const SETTLE: Duration = Duration::from_secs(2);
/// Interface indexes that are tried when the agent or the kernel say that one is taken.
const TRIES: u32 = 8;
/// Smallest MTU that IPv6 allows, in bytes.
const IPV6_MTU: u32 = 1280;

/// Wires a pod.
///
/// # Errors
/// See the [crate]'s table; nothing of it is left then.
pub fn add(environment: &Environment, config: &Config, log: &mut Log) -> Result<Success, CniError> {
    let run = RunDir(config.run_dir.clone());
    let node = ledger::read_node(&run)?;
    let trampolines = Trampolines::open(&node.frozen)
        .map_err(|e| CniError::new(code::TRY_AGAIN, format!("the agent's programs are not there: {e}")))?;
    let netns = open_netns(environment)?;
    // Before anything is made: an agent that is not there will not unlock it.
    let agent = Client::new(run.socket())
        .with_timeout(FAREWELL)
        .connect()
        .map_err(|e| CniError::new(code::TRY_AGAIN, format!("the agent is away: {e}")))?;
    let wanted = wanted(environment, config, &node)?;
    let delegate = Delegate::of(config, environment);
    if let Some(delegate) = &delegate {
        delegate.find()?;
    }
    let mtu = config.mtu.unwrap_or(node.mtu);
    log.step("validate");

    let owner = Owner { container_id: environment.container_id.clone(), ifname: environment.ifname.clone() };
    let attachment = Ledger::lock(&run)?.claim(&owner, &wanted, |index, addresses| Attachment {
        network: config.name.clone(),
        container_id: environment.container_id.clone(),
        ifname: environment.ifname.clone(),
        netns: environment.netns.clone(),
        pod: environment.pod.clone(),
        host_ifname: host_ifname(&owner),
        host_ifindex: index,
        host_mac: mac(b'f', index),
        pod_mac: config.mac.unwrap_or(mac(b'p', index)),
        addresses,
        mtu,
        shaped: config.shaped,
        apart: false,
    })?;
    log.step("reserve");
    let mut dns = config.dns.clone();
    let attachment = match &delegate {
        None => attachment,
        Some(delegate) => match delegated(delegate, &run, attachment.clone(), &mut dns) {
            Ok(attachment) => attachment,
            Err(error) => {
                release(&run, &owner, Some(delegate), log);
                return Err(error);
            }
        },
    };
    log.step("delegate");

    let attempt = Attempt { run: &run, node: &node, netns: &netns, trampolines: &trampolines };
    let mut attachment = attachment;
    let mut agent = Some(agent);
    let mut tries = 0;
    loop {
        tries += 1;
        let mut made = Made::default();
        let failure = match attempt.wire(&mut attachment, config, agent.take(), &mut made, log) {
            Ok(()) => return Ok(success(&attachment, dns, config)),
            Err(failure) => failure,
        };
        log.step("fail");
        let undone = attempt.undo(&attachment, &made, log);
        log.step("undo");
        let error = match failure {
            Failure::IndexTaken(_) if tries < TRIES && undone => {
                let again = Ledger::lock(&run).and_then(|mut ledger| {
                    ledger.reindex(attachment.clone(), |a, index| {
                        a.host_ifindex = index;
                        a.apart = false;
                        a.host_mac = mac(b'f', index);
                        a.pod_mac = config.mac.unwrap_or(mac(b'p', index));
                    })
                });
                match again {
                    Ok(reindexed) => {
                        attachment = reindexed;
                        continue;
                    }
                    Err(error) => error,
                }
            }
            Failure::IndexTaken(error) | Failure::Final(error) => error,
        };
        // What could not be undone keeps its reservation, for DEL or GC.
        if undone {
            release(&run, &owner, delegate.as_ref(), log);
        }
        return Err(error);
    }
}

/// Fills in the addresses that another plugin has reserved.
fn delegated(
    delegate: &Delegate<'_>,
    run: &RunDir,
    mut attachment: Attachment,
    dns: &mut Dns,
) -> Result<Attachment, CniError> {
    let result = delegate.add()?;
    for ip in result.ips.iter().map(|ip| ip.address.ip()) {
        if attachment.addresses.len() >= 2 || attachment.addresses.iter().any(|a| a.is_ipv6() == ip.is_ipv6())
        {
            let msg = format!("ipam.type: {ip} is a second address of its family");
            return Err(CniError::new(code::DELEGATE, msg));
        }
        attachment.addresses.push(ip);
    }
    if attachment.mtu < IPV6_MTU && attachment.addresses.iter().any(|a| a.is_ipv6()) {
        let msg = format!("mtu: IPv6 needs {IPV6_MTU} at least, not {}", attachment.mtu);
        return Err(CniError::configuration(msg));
    }
    if dns.is_empty() {
        *dns = result.dns;
    }
    Ledger::lock(run)?.amend(&attachment)?;
    Ok(attachment)
}

/// Frees what was reserved for an attachment that did not come to be.
fn release(run: &RunDir, owner: &Owner, delegate: Option<&Delegate<'_>>, log: &mut Log) {
    let mut results = Vec::new();
    results.extend(delegate.map(|d| d.del(owner)));
    results.push(Ledger::lock(run).and_then(|mut ledger| ledger.release(owner)));
    for error in results.into_iter().filter_map(Result::err) {
        log.note(format!("release: {error}"));
    }
}

fn open_netns(environment: &Environment) -> Result<Netns, CniError> {
    let wrong = |e: &dyn std::fmt::Display| {
        CniError::new(code::NETNS, format!("CNI_NETNS {}: {e}", environment.netns))
    };
    let netns = Netns::open(Path::new(&environment.netns)).map_err(|e| wrong(&e))?;
    if !environment.netns_override && netns.is_own().map_err(|e| wrong(&e))? {
        return Err(wrong(&"is the node's own namespace"));
    }
    Ok(netns)
}

fn wanted(environment: &Environment, config: &Config, node: &NodeInfo) -> Result<Wanted, CniError> {
    let sets = match &config.addresses {
        Addresses::Node { exclude } => ledger::node_pools(node, exclude)?,
        Addresses::Ranges(sets) => sets.clone(),
        // They come after the claim: who asked for them twice must not lose the first.
        Addresses::Delegated(_) => return Ok(Wanted::Given(Vec::new())),
    };
    let mtu = config.mtu.unwrap_or(node.mtu);
    if mtu < IPV6_MTU && sets.iter().any(|set| set[0].is_ipv6()) {
        return Err(CniError::configuration(format!("mtu: IPv6 needs {IPV6_MTU} at least, not {mtu}")));
    }
    let mut asked = config.ips.clone();
    if let (true, Some(ip)) = (asked.is_empty(), &environment.ip) {
        let network: IpNetwork = ip.parse().map_err(|_| {
            CniError::new(code::ENVIRONMENT, format!("CNI_ARGS: IP: {ip:?} is not an address"))
        })?;
        asked.push(network.ip());
    }
    Ok(Wanted::OfSets { sets, asked })
}

/// A locally administered address that no other interface of the node ever had.
fn mac(kind: u8, index: u32) -> Mac {
    let [a, b, c, d] = index.to_be_bytes();
    Mac([0x0a, kind, a, b, c, d])
}

/// Why wiring failed.
enum Failure {
    /// Another interface index may do.
    IndexTaken(CniError),
    /// Nothing will do.
    Final(CniError),
}

impl From<CniError> for Failure {
    fn from(error: CniError) -> Self {
        Self::Final(error)
    }
}

/// What there is to undo.
#[derive(Default)]
struct Made {
    link: bool,
    /// The clsact of an interface that is not ours.
    foreign_clsact: bool,
    told: bool,
}

struct Attempt<'a> {
    run: &'a RunDir,
    node: &'a NodeInfo,
    netns: &'a Netns,
    trampolines: &'a Trampolines,
}

fn kernel(e: impl std::fmt::Display) -> CniError {
    CniError::new(code::KERNEL, e.to_string())
}

/// Sends all of `requests`, and says which of them the kernel refused.
fn refused(netlink: &mut Netlink, requests: Vec<Request>) -> Result<Vec<NetlinkError>, CniError> {
    let results = netlink.batch(requests).map_err(kernel)?;
    Ok(results.into_iter().filter_map(Result::err).collect())
}

impl Attempt<'_> {
    fn wire(
        &self,
        a: &mut Attachment,
        config: &Config,
        agent: Option<Connection>,
        made: &mut Made,
        log: &mut Log,
    ) -> Result<(), Failure> {
        let mut host = Netlink::open().map_err(kernel)?;
        self.create(&mut host, a, made)?;
        log.step("create");
        // The agent works while the rest is wired: with the trampolines attached it has all that it needs.
        let asked = self.ask(agent, a, made);
        log.step("ask");
        host.all(wire::host_side(a)).map_err(kernel)?;
        log.step("host");
        self.configure(a)?;
        settle(&mut host, a.host_ifindex).map_err(kernel)?;
        log.step("pod");
        let answer = asked.and_then(Asked::answer::<EndpointStatus>);
        log.step("agent");
        match answer {
            Ok(status) if status.unlocked => Ok(()),
            Ok(_) => Err(Failure::Final(CniError::new(
                code::REFUSED,
                format!("the agent did not unlock {}", owner_of(a)),
            ))),
            Err(error) => Err(self.refusal(error, config)),
        }
    }

    /// Asks the agent to unlock the endpoint once its policy is in place.
    fn ask(&self, agent: Option<Connection>, a: &Attachment, made: &mut Made) -> Result<Asked, ClientError> {
        let limit = Duration::from_millis(self.node.add_timeout_ms) + GRACE;
        let agent = match agent {
            Some(agent) => agent.with_timeout(limit),
            None => Client::new(self.run.socket()).with_timeout(limit).connect()?,
        };
        made.told = true;
        agent.put("/v1/endpoints", a)
    }

    fn refusal(&self, error: ClientError, config: &Config) -> Failure {
        let of = |code, error: &ClientError| {
            CniError::new(code, error.to_string()).details(format!("network {}", config.name))
        };
        match &error {
            ClientError::Answer(answer) => match answer.code {
                ErrorCode::SlotTaken => Failure::IndexTaken(of(code::REFUSED, &error)),
                ErrorCode::TryAgain => Failure::Final(of(code::TRY_AGAIN, &error)),
                _ => Failure::Final(of(code::REFUSED, &error)),
            },
            _ if error.is_away() => Failure::Final(of(code::TRY_AGAIN, &error)),
            _ => Failure::Final(of(code::REFUSED, &error)),
        }
    }

    /// Makes the veth, locked from its first instant: the trampolines are attached before it is up.
    fn create(&self, host: &mut Netlink, a: &Attachment, made: &mut Made) -> Result<(), Failure> {
        let results = host.batch(wire::create(a, self.netns.raw_fd(), self.trampolines)).map_err(kernel)?;
        made.link = results[wire::CREATE_LINK].is_ok();
        made.foreign_clsact = !a.shaped && !made.link && results[wire::CREATE_QDISC].is_ok();
        let Some(error) = results.into_iter().find_map(Result::err) else {
            return if a.shaped { self.attach(a).map_err(Failure::Final) } else { Ok(()) };
        };
        // EBUSY: the interface index, in either namespace.
        if made.link || !matches!(error.errno(), Some(libc::EEXIST | libc::EBUSY)) {
            return Err(kernel(error).into());
        }
        Err(self.existing(a, error))
    }

    /// Attaches the trampolines of a shaped endpoint, whose veth is not up yet.
    fn attach(&self, a: &Attachment) -> Result<(), CniError> {
        let pairs = [(Tcx::Ingress, &self.trampolines.from_pod), (Tcx::Egress, &self.trampolines.to_pod)];
        for (hook, program) in pairs {
            bpf::attach_tcx(a.host_ifindex, hook, program).map_err(|e| {
                kernel(format!(
                    "cannot attach by tcx, which a shaped pod needs: {hook:?} of {}: {e}",
                    a.host_ifname
                ))
            })?;
        }
        Ok(())
    }

    /// Something exists already: which of index, host's name and pod's name?
    fn existing(&self, a: &Attachment, error: NetlinkError) -> Failure {
        let in_pod = self.netns.within(|| {
            let index = nix::net::if_::if_nametoindex(a.ifname.as_str()).ok();
            Ok((index, ledger::interface_name(a.host_ifindex)))
        });
        match in_pod {
            Err(e) => Failure::Final(CniError::new(code::NETNS, format!("CNI_NETNS {}: {e}", a.netns))),
            Ok((Some(_), _)) => Failure::Final(CniError::new(
                code::EXISTS,
                format!("{} has an interface {} already", a.netns, a.ifname),
            )),
            Ok((None, _)) if nix::net::if_::if_nametoindex(a.host_ifname.as_str()).is_ok() => {
                Failure::Final(CniError::new(
                    code::EXISTS,
                    format!("the node has an interface {} already, left by {}", a.host_ifname, owner_of(a)),
                ))
            }
            Ok(_) => Failure::IndexTaken(kernel(error)),
        }
    }

    fn configure(&self, a: &mut Attachment) -> Result<(), CniError> {
        let mut pod = self
            .netns
            .within(Netlink::open)
            .map_err(|e| CniError::new(code::NETNS, format!("CNI_NETNS {}: {e}", a.netns)))?;
        let of = |ipv6: bool| a.addresses.iter().filter(move |ip| ip.is_ipv6() == ipv6);
        let mut first = wire::pod_link(a);
        first.extend(of(false).flat_map(|ip| wire::pod_address(a, *ip)));
        let mut failed = refused(&mut pod, first)?;
        let second = || of(true).flat_map(|ip| wire::pod_address(a, *ip)).collect::<Vec<_>>();
        let mut of_ipv6 = refused(&mut pod, second())?;
        if of_ipv6.iter().any(|e| e.errno() == Some(libc::EACCES)) {
            // IPv6 is switched off in this namespace; the pod is to have it.
            let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", a.ifname);
            self.netns
                .within(|| std::fs::write(&path, "0"))
                .map_err(|e| kernel(format!("cannot switch on IPv6: {path}: {e}")))?;
            of_ipv6 = refused(&mut pod, wire::pod_link(a).into_iter().chain(second()).collect())?;
        }
        failed.append(&mut of_ipv6);
        if failed.iter().any(|e| e.errno() == Some(libc::EEXIST)) {
            // By another interface the sandbox has routes of that kind already. On record first: rules
            // outlive the interface.
            a.apart = true;
            Ledger::lock(self.run)?.amend(a)?;
            failed = refused(&mut pod, wire::pod_apart(a))?;
        }
        failed.into_iter().next().map_or(Ok(()), |e| Err(kernel(e)))
    }

    /// Undoes in reverse; `false` if something is left.
    fn undo(&self, a: &Attachment, made: &Made, log: &mut Log) -> bool {
        if made.told {
            // Should the agent unlock it later on, it stays dead.
            if let Err(e) = bpf::kill(&self.node.frozen, a.host_ifindex) {
                log.note(format!("kill: {e}"));
            }
            let client = Client::new(self.run.socket()).with_timeout(FAREWELL);
            if let Err(e) = client.delete(&endpoint_path(&a.container_id, &a.ifname)) {
                log.note(format!("undo: {e}"));
            }
        }
        let result = if made.link {
            unlink::remove(a.host_ifindex)
        } else if made.foreign_clsact {
            let host = Netlink::open().map_err(|e| e.to_string());
            host.and_then(|mut host| {
                host.all(vec![wire::remove_clsact(a.host_ifindex)]).map_err(|e| e.to_string())
            })
        } else {
            return true;
        };
        if a.apart {
            remove_rules(a, log);
        }
        if let Err(e) = &result {
            log.note(format!("undo: {e}"));
        }
        result.is_ok()
    }
}

/// Waits until the host's end can send.
///
/// It was up before its peer was, so it has no carrier until the kernel's link watch has run, which
/// is later, and drops until then what is sent to the pod. Asking for the link makes kernels from 6.7
/// on run it at once; with others its operational state tells when it has.
fn settle(host: &mut Netlink, ifindex: u32) -> std::io::Result<()> {
    let begin = Instant::now();
    loop {
        let link = host.get(wire::link(ifindex))?;
        let up = matches!(&link, Some(RouteNetlinkMessage::NewLink(link))
            if link.attributes.contains(&LinkAttribute::OperState(State::Up)));
        if up {
            return Ok(());
        }
        if begin.elapsed() > SETTLE {
            return Err(std::io::Error::other("the interface has no carrier"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Removes rules from the sandbox of an attachment that is [apart](Attachment::apart), if it is still
/// there.
pub(crate) fn remove_rules(a: &Attachment, log: &mut Log) {
    let netns = Netns::open(Path::new(&a.netns));
    let Ok(mut pod) = netns.and_then(|netns| netns.within(Netlink::open)) else { return };
    for rule in wire::remove_rules(a) {
        match pod.all(vec![rule]) {
            Err(e) if e.errno() != Some(libc::ENOENT) => log.note(e.to_string()),
            _ => {}
        }
    }
}

/// What ADD answers.
fn success(a: &Attachment, dns: Dns, config: &Config) -> Success {
    let everywhere = |v6: bool| -> IpNetwork {
        let any: std::net::IpAddr =
            if v6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
        IpNetwork::new(any, 0).unwrap_or(IpNetwork::from(any))
    };
    let ours = Success {
        interfaces: vec![
            Interface {
                name: a.host_ifname.clone(),
                mac: Some(a.host_mac.to_string()),
                mtu: Some(a.mtu),
                ..Interface::default()
            },
            Interface {
                name: a.ifname.clone(),
                mac: Some(a.pod_mac.to_string()),
                mtu: Some(a.mtu),
                sandbox: Some(a.netns.clone()),
                ..Interface::default()
            },
        ],
        ips: a
            .addresses
            .iter()
            .map(|ip| Ip {
                address: IpNetwork::from(*ip),
                gateway: Some(wire::gateway(*ip)),
                interface: Some(1),
            })
            .collect(),
        routes: a
            .addresses
            .iter()
            .map(|ip| Route {
                dst: everywhere(ip.is_ipv6()),
                gw: Some(wire::gateway(*ip)),
                mtu: None,
                advmss: None,
                priority: None,
                table: a.apart.then_some(a.host_ifindex),
                scope: None,
            })
            // Without their table they would be taken for routes of the main one.
            .filter(|route| route.table.is_none() || config.version >= CniVersion::V110)
            .collect(),
        dns,
    };
    let mut all = config.prev_result.clone().unwrap_or_default();
    all.append(ours);
    all
}
