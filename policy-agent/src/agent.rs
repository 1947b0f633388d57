//! Puts the parts together.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;
use fairlead_api::Attachment;
use fairlead_cluster::Reporter;
use fairlead_datapath::{Capacities, Datapath};
use fairlead_index::Event;
use fairlead_index::manifests::{Directory, watch::watch};
use fairlead_policy::compiler::Compiler;
use fairlead_policy::model::ObjectKey;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;

use crate::api::{self, Service};
use crate::drops;
use crate::engine::{self, Engine, EngineHandle, Message};
use crate::liveness;
use crate::lock::lock;
use crate::network::Network;
use crate::pulse::Pulse;
use crate::readiness::Readiness;
use crate::report;
use crate::settings::{Settings, Source};

/// Runs the agent until it is told to end. What it enforces stays enforced.
///
/// # Errors
/// Where it cannot start, or a part of it breaks.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    for folder in [settings.run.path(), &settings.run.endpoints(), &settings.cni_conf_dir] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = settings.run.lock();
    let locking = tokio::task::spawn_blocking(move || lock(&path));
    let _lock = tokio::select! {
        lock = locking => lock?.with_context(|| format!("cannot lock {}", settings.run.lock().display()))?,
        // The thread that waits for the lock must not keep the process.
        _ = terminate.recv() => std::process::exit(0),
        _ = interrupt.recv() => std::process::exit(0),
    };

    tracing::info!(node = settings.node_name, version = env!("CARGO_PKG_VERSION"), "in charge");
    let restored = restored(&settings)?;
    let (handle, inbox) = engine::channel();
    let (wanted, asked) = tokio::sync::mpsc::unbounded_channel();
    // Read while the programs are verified; nothing of it is in force before there is an engine.
    let watching = watching(&settings, handle.clone(), asked).await?;
    let options = fairlead_datapath::Options {
        fast_path: settings.fast_path,
        mark_mask: settings.mark_mask,
        capacities: Capacities::from(&settings.limits),
        overlay: settings.overlay(),
        early: settings.xdp.into(),
        ..fairlead_datapath::Options::new(&settings.bpffs)
    };
    let opening = tokio::task::spawn_blocking(move || Datapath::open(&options));
    let mut datapath = opening.await?.context("cannot open the datapath")?;
    let drops = drops::Log::new(Some(datapath.event_losses()?));
    let events = datapath.take_events()?.context("the datapath has no events")?;
    let frozen = datapath.frozen().to_owned();
    tracing::info!(endpoints = restored.len(), "datapath loaded");
    let options = engine::Options {
        node_name: settings.node_name.clone(),
        add_timeout: settings.add_timeout,
        fast_path: settings.fast_path,
        restored,
        wanted: matches!(settings.source, Source::Cluster(_)).then_some(wanted),
    };
    let (engine, published) = Engine::new(datapath, Compiler::new(settings.limits), options, inbox);
    let (ended, mut engine_ended) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        engine.run();
        drop(ended);
    })?;

    let waiting_for = Some("starting".to_owned());
    let (readiness, ready) = channel::channel(Readiness { waiting_for, ..Readiness::default() });
    let (stuck, stuck_loops) = channel::channel(Vec::new());
    let service = Service {
        engine: handle.clone(),
        node: settings.node_name.as_str().into(),
        readiness: ready,
        stuck: stuck_loops,
        drops: drops.clone(),
    };
    let service_for_reports = service.clone();
    let socket = settings.run.socket();
    let listener =
        api::listen_unix(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let router = api::router(service.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    if let Some(address) = settings.http_listen.clone() {
        let pulse = Pulse::default();
        tokio::spawn(liveness::beat(pulse.clone()));
        let looking = liveness::Watch::new(handle.clone(), pulse).run(stuck);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("probes".to_owned()).spawn(move || {
            runtime
                .block_on(async { tokio::join!(looking, api::serve_probes(address, api::probes(service))) })
        })?;
    }
    if let Source::Cluster(access) = &settings.source {
        let reporter = Reporter::new(access.clone(), &settings.node_name);
        tokio::spawn(report::run(reporter, settings.remove_taint, service_for_reports));
    }
    let reading = tokio::spawn(drops::read(events, handle.clone(), published.clone(), drops));
    let network = Network::new(settings, frozen, handle.clone(), published, readiness)?;
    let network = tokio::spawn(network.run());

    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = &mut engine_ended => Err(anyhow::anyhow!("the engine has ended")),
        result = serving => broken("the agent's socket", result),
        result = watching => broken("watching the state of the world", result),
        result = reading => broken("reading dropped packets", result),
        result = network => broken("the node's network", result),
    };
    handle.tell(Message::Stop);
    // Everything in force stays in force; the socket goes, so that callers need not time out.
    let _ = fs::remove_file(&socket);
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    result
}

/// Begins to tell the engine of the state of the world.
async fn watching(
    settings: &Settings,
    engine: EngineHandle,
    asked: UnboundedReceiver<ObjectKey>,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let tell = move |event| {
        engine.tell(match event {
            Event::Batch(batch) => Message::Batch(batch),
            Event::Synced => Message::Synced,
        })
    };
    Ok(match &settings.source {
        Source::Manifests(folder) => tokio::spawn(watch(Directory::new(folder), tell)),
        Source::Cluster(access) => {
            let cluster = fairlead_cluster::Source::new(access.clone(), asked, settings.add_timeout).await?;
            tokio::spawn(async move {
                cluster.run(tell).await;
                Ok(())
            })
        }
    })
}

fn broken(what: &str, result: Result<std::io::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    result.map_err(anyhow::Error::from).and_then(|r| Ok(r?)).with_context(|| format!("{what} broke"))?;
    anyhow::bail!("{what} has ended")
}

/// Frees what belongs to sandboxes that are gone, and reads what is still there.
fn restored(settings: &Settings) -> anyhow::Result<Vec<Attachment>> {
    match fairlead_cni::reconcile(&settings.run, fairlead_cni::sandbox_lives) {
        Ok(done) => {
            for attachment in &done.removed {
                tracing::info!(
                    container = attachment.container_id,
                    interface = attachment.ifname,
                    "freed: its sandbox is gone"
                );
            }
            for lease in &done.freed {
                tracing::info!("freed: {lease:?} belonged to no attachment");
            }
            for what in &done.mended {
                tracing::warn!("{what}");
            }
            for entry in &done.unreadable {
                tracing::warn!("attachment {:?} cannot be read: {}", entry.owner, entry.why);
            }
        }
        Err(e) => tracing::error!("addresses could not be reconciled: {e:?}"),
    }
    let folder = settings.run.endpoints();
    let mut found: BTreeMap<String, Attachment> = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || !name.ends_with(".json") {
            continue;
        }
        let read = fs::read(&path).map_err(anyhow::Error::from);
        match read.and_then(|bytes| Ok(serde_json::from_slice::<Attachment>(&bytes)?)) {
            Ok(attachment) => {
                let there = fairlead_cni::ledger::interface_name(attachment.host_ifindex);
                if there.as_deref() == Some(attachment.host_ifname.as_str()) {
                    found.insert(name, attachment);
                }
            }
            Err(e) => tracing::warn!("{}: {e:#}", path.display()),
        }
    }
    Ok(found.into_values().collect())
}
