//! The node's own network: which addresses are its own, the uplink, routes to the other nodes' pods.

pub mod links;
mod nft;
mod overlay;
pub mod plan;
mod routes;
mod sysctl;

use std::collections::BTreeSet;
use std::time::Duration;

use fairlead_api::NodeInfo;
use fairlead_policy::model::{Node, without_host_bits};
use futures_util::StreamExt as _;
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::conflist;
use crate::engine::{EngineHandle, Message, Published};
use crate::host::install;
use crate::readiness::Readiness;
use crate::settings::Settings;

use links::{Interface, Interfaces, Notice};
use plan::{Plan, Site};
use routes::Routes;

pub(crate) use nft::{Closed, Ruleset};
pub(crate) use plan::{LAST_METRIC, OVERHEAD};
pub(crate) use routes::PROTOCOL;
pub(crate) use sysctl::{put_back, wrong};

/// Where the settings of the kernel that were changed are recorded.
pub(crate) fn sysctl_journal(run: &fairlead_api::RunDir) -> std::path::PathBuf {
    run.path().join("sysctls.json")
}

/// Changes within this time belong together.
const QUIET: Duration = Duration::from_millis(20);
/// What foreign hands have changed is put right after this time at the latest.
const REGULARLY: Duration = Duration::from_secs(30);
/// As above, while something does not work.
const RETRY: Duration = Duration::from_secs(1);

/// Takes away what [`Network`] has put into nftables, for an uninstall.
///
/// # Errors
/// What the kernel says.
pub fn remove_table() -> std::io::Result<()> {
    nft::Table::default().remove()
}

/// Sees to the node's network until the engine ends.
pub struct Network {
    settings: Settings,
    frozen: std::path::PathBuf,
    engine: EngineHandle,
    published: watch::Receiver<Published>,
    readiness: watch::Sender<Readiness>,
    handle: rtnetlink::Handle,
    routes: Routes,
    /// The overlay device as it was last made.
    overlay: Option<(u32, overlay::Wanted)>,
    own: Option<BTreeSet<std::net::IpAddr>>,
    /// Interfaces that have the uplink's programs.
    attached: BTreeSet<u32>,
    /// What is known of nodes, and what is to be made of it.
    plan: Plan,
    /// What is not masqueraded: pod CIDRs and addresses of all nodes, and what is excluded.
    inside: nft::Inside,
    table: nft::Table,
    /// The interfaces as last listed, where nothing has changed since.
    interfaces: Option<Interfaces>,
    /// Foreign hands may have changed what is remembered.
    distrust: bool,
    /// Once everything is installed: what was left out.
    installed: Option<Vec<String>>,
}

impl Network {
    /// Opens rtnetlink.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn new(
        settings: Settings,
        frozen: std::path::PathBuf,
        engine: EngineHandle,
        published: watch::Receiver<Published>,
        readiness: watch::Sender<Readiness>,
    ) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let mut inside = nft::Inside::default();
        inside.add(settings.masquerade_exclude.iter().copied());
        Ok(Self {
            settings,
            frozen,
            engine,
            published,
            readiness,
            routes: Routes::new(handle.clone()),
            handle,
            overlay: None,
            own: None,
            attached: BTreeSet::new(),
            plan: Plan::default(),
            inside,
            table: nft::Table::default(),
            interfaces: None,
            distrust: true,
            installed: None,
        })
    }

    /// Works for ever.
    ///
    /// # Errors
    /// Where rtnetlink breaks.
    pub async fn run(mut self) -> std::io::Result<()> {
        let mut notices = links::notices()?;
        loop {
            let seen = *self.published.borrow_and_update();
            let result = self.round(&seen).await;
            let wait =
                if result.waiting_for.is_none() && result.problems.is_empty() { REGULARLY } else { RETRY };
            self.readiness.send_if_modified(|there| {
                let changed = *there != result;
                if changed {
                    for problem in result.problems.iter().filter(|p| !there.problems.contains(p)) {
                        tracing::warn!("{problem}");
                    }
                    match (&result.waiting_for, &there.waiting_for) {
                        (None, Some(_)) => tracing::info!("ready"),
                        (Some(what), before) if before.as_ref() != Some(what) => {
                            tracing::info!("waiting: {what}");
                        }
                        _ => {}
                    }
                    *there = result;
                }
                changed
            });
            if !self.await_change(&mut notices, wait).await? {
                return Ok(());
            }
        }
    }

    /// Waits until something may have changed; `false` where the engine has ended.
    async fn await_change(&mut self, notices: &mut links::Notices, wait: Duration) -> std::io::Result<bool> {
        let broken = || std::io::Error::other("rtnetlink notifications have ended");
        let until = Instant::now() + wait;
        tokio::select! {
            changed = self.published.changed() => return Ok(changed.is_ok()),
            notice = timeout_at(until, notices.next()) => match notice {
                Err(_) => {
                    self.distrust = true;
                    return Ok(true);
                }
                Ok(notice) => self.heed(notice.ok_or_else(broken)?),
            },
        }
        // Interfaces come with several notices each.
        let until = Instant::now() + 4 * QUIET;
        while Instant::now() < until {
            match timeout(QUIET, notices.next()).await {
                Err(_) => break,
                Ok(notice) => self.heed(notice.ok_or_else(broken)?),
            }
        }
        Ok(true)
    }

    fn heed(&mut self, notice: Notice) {
        self.interfaces = None;
        if let Notice::LinkGone(ifindex) = notice {
            self.attached.remove(&ifindex);
            self.engine.tell(Message::LinkGone(ifindex));
        }
    }

    /// Takes what has become of nodes since the last round.
    fn take_nodes(&mut self) {
        let changes = self.engine.take_node_changes();
        for (name, node) in &changes {
            self.inside.remove(self.plan.node(name).iter().flat_map(|node| networks(node)));
            self.inside.add(node.iter().flat_map(|node| networks(node)));
        }
        self.plan.take(changes);
    }

    /// Looks at everything once and puts it right.
    async fn round(&mut self, published: &Published) -> Readiness {
        self.take_nodes();
        let before = self.readiness.borrow().clone();
        let distrust = std::mem::take(&mut self.distrust);
        if distrust {
            self.interfaces = None;
            self.routes.distrust();
        }
        let interfaces = match self.interfaces.take() {
            Some(interfaces) => interfaces,
            None => match links::interfaces(&self.handle).await {
                Ok(interfaces) => {
                    self.engine.tell(Message::Links(interfaces.indexes()));
                    interfaces
                }
                Err(e) => {
                    self.distrust = true;
                    let problem = format!("listing interfaces: {e}");
                    return Readiness { problems: vec![problem], ..before };
                }
            },
        };
        let own = interfaces.addresses();
        if self.own.as_ref() != Some(&own) {
            self.engine.tell(Message::OwnAddresses(own.clone()));
            self.own = Some(own);
        }
        // What once was ready stays so: the tables hold whatever happens to objects.
        let was_ready = self.installed.is_some() && before.waiting_for.is_none();
        let mut now = Readiness { waiting_for: None, uplink: before.uplink.clone(), problems: Vec::new() };
        if distrust {
            now.problems.extend(self.table.look().err().map(|e| format!("nftables: {e}")));
        }
        if let Err(what) = self.put_right(published, &interfaces, &mut now).await {
            if was_ready {
                now.problems.push(what);
            } else {
                now.waiting_for = Some(what);
            }
        }
        self.interfaces = Some(interfaces);
        now
    }

    async fn put_right(
        &mut self,
        published: &Published,
        interfaces: &Interfaces,
        now: &mut Readiness,
    ) -> Result<(), String> {
        if !published.synced {
            return Err("the state of the world is not known yet".to_owned());
        }
        let name = &self.settings.node_name.clone();
        let node = &self.plan.node(name).cloned().ok_or_else(|| format!("Node {name} is not known"))?;
        if node.pod_cidrs.is_empty() {
            return Err(format!("Node {name} has no pod CIDR of its own"));
        }
        let uplink = match &self.settings.uplink {
            Some(uplink) => interfaces.by_name(uplink).ok_or_else(|| {
                format!("there is no interface {uplink} (--uplink), or none that leads out of the node")
            })?,
            None => interfaces.by_address(&node.addresses).ok_or_else(|| {
                format!(
                    "no interface holds an address of Node {name} ({:?}): name one with --uplink",
                    node.addresses
                )
            })?,
        };
        now.uplink = Some(uplink.name.clone());
        self.attach(uplink).await?;
        for exit in interfaces.exits() {
            // Without its programs nothing of a pod leaves there, see the table.
            now.problems.extend(self.attach(exit).await.err());
        }
        let mtu = plan::mtu(uplink.mtu, self.settings.routing, node);
        let overlay = match self.overlay(interfaces, node, mtu).await {
            Ok(overlay) => overlay,
            Err(problem) => {
                self.overlay = None;
                now.problems.push(problem);
                None
            }
        };
        let ipv6 = node.pod_cidrs.iter().any(|c| c.is_ipv6());
        let journal = sysctl_journal(&self.settings.run);
        now.problems.extend(sysctl::set(&uplink.name, ipv6, &journal));
        let device = overlay.map(|interface| plan::Overlay { interface, id: self.settings.vxlan_id });
        let mtu = self.settings.mtu.unwrap_or(mtu);
        self.plan.work_out(&Site::new(node, interfaces, uplink, self.settings.routing, device, mtu));
        let unreached = self.routes.reconcile(&mut self.plan).await;
        // The programs leave to the routes where a packet goes: without one it is the stack's.
        let straight = self.settings.fast_path_between_nodes && unreached.is_empty();
        let exits = self.plan.take_exits(straight);
        if !exits.is_empty() {
            self.engine.tell(Message::Exits(exits));
        }
        now.problems.extend(unreached);
        now.problems.extend(self.plan.problems());
        let table = self.contents(node, overlay);
        if let Err(e) = self.table.ensure(&table, &mut self.inside) {
            now.problems.push(format!("nftables, table inet fairlead: {e}"));
        }
        if !published.active {
            return Err("policy is not in force yet".to_owned());
        }
        let info = NodeInfo {
            node_name: name.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
            mtu,
            frozen: self.frozen.clone(),
            add_timeout_ms: u64::try_from(self.settings.add_timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let run = &self.settings.run;
        conflist::write_node(run, &info).map_err(|e| format!("writing {}: {e}", run.node().display()))?;
        let folder = &self.settings.cni_conf_dir;
        if self.installed.is_none() {
            let bin = self.settings.cni_bin_dir.as_deref();
            if let Some(bin) = bin {
                // The runtime may call it as soon as the configuration is there.
                install_executable(bin).map_err(|e| format!("installing the CNI executable: {e}"))?;
            }
            let left_out = conflist::write_conflist(folder, run, bin)
                .map_err(|e| format!("writing the CNI configuration in {}: {e}", folder.display()))?;
            self.installed = Some(left_out);
        }
        now.problems.extend(self.installed.iter().flatten().cloned());
        match conflist::foreign(folder) {
            Ok(foreign) => now.problems.extend(foreign),
            Err(e) => now.problems.push(format!("{}: {e}", folder.display())),
        }
        Ok(())
    }

    /// Sees to the overlay device, or that there is none; returns its index.
    async fn overlay(
        &mut self,
        interfaces: &Interfaces,
        own: &Node,
        mtu: u32,
    ) -> Result<Option<u32>, String> {
        let there = overlay::index(interfaces);
        if !self.settings.routing.tunnels() {
            if let Some(index) = there {
                overlay::remove(&self.handle, index).await?;
                self.routes.distrust();
            }
            return Ok(None);
        }
        let first = |ipv6: bool| own.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6);
        let addresses = [first(false), first(true)].into_iter().flatten().collect();
        let wanted = overlay::Wanted { port: self.settings.vxlan_port, mtu, addresses };
        if let (Some(index), Some((known, as_known))) = (there, &self.overlay)
            && index == *known
            && wanted == *as_known
            && overlay::is_set_up(interfaces, index, &wanted)
        {
            return Ok(Some(index));
        }
        let index = overlay::make(&self.handle, &wanted).await?;
        // Before it is up: nothing passes it unseen.
        self.engine
            .ask(|reply| Message::Overlay(index, reply))
            .await
            .map_err(|e| e.message)?
            .map_err(|e| format!("attaching to {}: {e}", links::OVERLAY))?;
        overlay::set_up(&self.handle, interfaces, index, &wanted).await?;
        self.routes.distrust();
        self.overlay = Some((index, wanted));
        Ok(Some(index))
    }

    /// Gives an interface the programs for what comes from elsewhere and what leaves.
    async fn attach(&mut self, interface: &Interface) -> Result<(), String> {
        if self.attached.contains(&interface.index) {
            return Ok(());
        }
        self.engine
            .ask(|reply| Message::Uplink(interface.index, reply))
            .await
            .map_err(|e| e.message)?
            .map_err(|e| format!("attaching to {}: {e}", interface.name))?;
        self.attached.insert(interface.index);
        Ok(())
    }

    /// What the table of nftables is to hold.
    fn contents(&self, own: &Node, overlay: Option<u32>) -> nft::Contents {
        let pods = own.pod_cidrs.iter().map(|c| without_host_bits(*c));
        nft::Contents {
            masquerade: self.settings.masquerade,
            pods: pods.collect(),
            exits: self.attached.iter().copied().chain(overlay).collect(),
            mark_mask: self.settings.mark_mask,
            overlay_port: overlay.map(|_| self.settings.vxlan_port),
        }
    }
}

/// A node's pod CIDRs and addresses.
fn networks(node: &Node) -> impl Iterator<Item = IpNetwork> {
    node.pod_cidrs.iter().copied().chain(node.addresses.iter().map(|address| (*address).into()))
}

/// Installs the CNI executable, which lies beside this one.
fn install_executable(bin: &std::path::Path) -> std::io::Result<()> {
    let this = std::env::current_exe()?;
    install::install(this.parent().unwrap_or(&this), bin).map(drop)
}

#[cfg(test)]
mod tests;
