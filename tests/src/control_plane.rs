//! A real API server with its etcd, in a node's network namespace.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
    ValidationDirective,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::agent::die_with_parent;
use crate::namespace::Namespace;
use crate::wait::await_until;
use crate::world::Object;

/// Time that etcd and API server may take until they are ready, on a machine that is busy.
const READY: Duration = Duration::from_secs(120);
/// Time that a request may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Port of the API server, within its namespace.
pub const PORT: u16 = 6443;
/// Who may do everything.
const ADMIN_TOKEN: &str = "admin";

/// Where an API server is reached, beside the loopback interface.
#[derive(Clone, Debug, Default)]
pub struct Exposure {
    /// Its addresses; none where only the loopback interface is asked for.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of Services, the first family first.
    pub services: Vec<IpNetwork>,
}

/// etcd and kube-apiserver; killed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    namespace: Arc<Namespace>,
    exposure: Exposure,
    folder: PathBuf,
    etcd: Child,
    server: Option<Child>,
    issuer: Issuer,
}

/// The certificate authority of server and clients.
struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuer")
    }
}

impl Issuer {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "tests");
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Certificate and key in PEM of a user, or of a server under an address.
    fn issue(&self, name: &str, group: Option<&str>, addresses: &[&str]) -> Result<(String, String)> {
        let mut params = CertificateParams::new(addresses.iter().map(|&a| a.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

impl ControlPlane {
    /// Starts both on the loopback interface of a namespace, with files in `folder`, and waits until
    /// they are ready.
    ///
    /// # Errors
    /// When the executables are not there, or do not get ready; with their last words.
    pub async fn start(namespace: Arc<Namespace>, folder: &Path) -> Result<Self> {
        Self::start_exposed(namespace, folder, Exposure::default()).await
    }

    /// The same, with an API server that a cluster's nodes and pods can reach.
    ///
    /// # Errors
    /// When the executables are not there, or do not get ready; with their last words.
    pub async fn start_exposed(namespace: Arc<Namespace>, folder: &Path, exposure: Exposure) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let issuer = Issuer::new()?;
        let mut names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned).to_vec();
        names.extend(exposure.addresses.iter().map(IpAddr::to_string));
        // The first address of each prefix is the API server's own Service.
        names.extend(exposure.services.iter().filter_map(|s| Some(s.iter().nth(1)?.to_string())));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (certificate, key) = issuer.issue("kube-apiserver", None, &names)?;
        let (client, client_key) = issuer.issue("kube-apiserver", Some("system:masters"), &[])?;
        let signer = KeyPair::generate()?;
        let tokens = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
        let files = [
            ("ca.pem", issuer.0.pem()),
            ("server.pem", certificate),
            ("server.key", key),
            ("client.pem", client),
            ("client.key", client_key),
            ("signer.key", signer.serialize_pem()),
            ("signer.pub", signer.public_key_pem()),
            ("tokens.csv", tokens),
        ];
        for (name, content) in files {
            std::fs::write(folder.join(name), content).with_context(|| format!("cannot write {name}"))?;
        }
        let mut etcd = program(folder, "etcd")?;
        etcd.arg("--data-dir").arg(folder.join("etcd")).args([
            "--unsafe-no-fsync",
            "--log-level=error",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
        ]);
        let etcd = spawn(&namespace, etcd).await?;
        let mut control = Self { namespace, exposure, folder: folder.to_owned(), etcd, server: None, issuer };
        control.start_server(PORT).await?;
        Ok(control)
    }

    /// Starts the API server, on whatever port, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready; with its last words.
    pub async fn start_server(&mut self, port: u16) -> Result<()> {
        self.kill_server()?;
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = program(&self.folder, "kube-apiserver")?;
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--allow-privileged",
        ]);
        if let Some(address) = self.exposure.addresses.first() {
            command.arg("--bind-address=::").arg(format!("--advertise-address={address}"));
            let services: Vec<String> = self.exposure.services.iter().map(ToString::to_string).collect();
            command.arg(format!("--service-cluster-ip-range={}", services.join(",")));
            command.arg(format!("--kubelet-client-certificate={}", file("client.pem")));
            command.arg(format!("--kubelet-client-key={}", file("client.key")));
            command.arg(format!("--kubelet-certificate-authority={}", file("ca.pem")));
            command.arg("--kubelet-preferred-address-types=InternalIP");
        } else {
            command.args([
                "--bind-address=127.0.0.1",
                // It looks for a default route otherwise; nobody is told of the address.
                "--advertise-address=192.0.2.1",
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.96.0.0/16",
                // Nothing here makes the accounts that pods would have.
                "--disable-admission-plugins=ServiceAccount",
            ]);
        }
        command.arg(format!("--secure-port={port}"));
        for (flag, name) in [
            ("tls-cert-file", "server.pem"),
            ("tls-private-key-file", "server.key"),
            ("client-ca-file", "ca.pem"),
            ("token-auth-file", "tokens.csv"),
            ("service-account-key-file", "signer.pub"),
            ("service-account-signing-key-file", "signer.key"),
        ] {
            command.arg(format!("--{flag}={}", file(name)));
        }
        self.server = Some(spawn(&self.namespace, command).await?);
        let waited = await_until("API server", READY, async || {
            for child in [Some(&mut self.etcd), self.server.as_mut()].into_iter().flatten() {
                if let Some(status) = child.try_wait()? {
                    bail!("ended: {status}");
                }
            }
            let asked = self.on(port, async |client| Ok(client.apiserver_version().await?));
            // Roles come last of what it makes itself.
            let roles = async |client: Client| {
                let gvk = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", "ClusterRole");
                let api = Api::<DynamicObject>::all_with(client, &ApiResource::from_gvk(&gvk));
                Ok(api.get("cluster-admin").await?)
            };
            Ok(asked.await.is_ok() && self.on(port, roles).await.is_ok())
        })
        .await;
        waited.map_err(|error| {
            let log = std::fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            anyhow::anyhow!("{error:#}\nits last words:\n{last}")
        })
    }

    /// SIGKILL to the API server. etcd goes on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_server(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
        }
        Ok(())
    }

    /// Works as an administrator at the API server, from within its namespace.
    ///
    /// # Errors
    /// What the work returns, or that it takes too long.
    pub async fn with<R: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Client) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.on(PORT, work).await
    }

    /// The same, where the API server listens on another port.
    ///
    /// # Errors
    /// What the work returns, or that it takes too long.
    pub async fn on<R: Send + 'static>(
        &self,
        port: u16,
        work: impl AsyncFnOnce(Client) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig(port, &json!({"token": ADMIN_TOKEN})))?;
        self.namespace
            .run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let options = KubeConfigOptions::default();
                    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
                    tokio::time::timeout(ANSWER, work(Client::try_from(config)?)).await?
                })
            })
            .await?
    }

    /// Applies an object, strictly by the API's schema; what the server made of it.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, object: &Object) -> Result<Object> {
        let object = object.clone();
        self.with(async move |client| apply(client, object, false).await).await
    }

    /// Asks the API server whether it would accept an object.
    ///
    /// # Errors
    /// When it would not.
    pub async fn would_accept(&self, object: &Object) -> Result<Object> {
        let object = object.clone();
        self.with(async move |client| apply(client, object, true).await).await
    }

    /// Deletes an object at once.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete(&self, object: &Object) -> Result<()> {
        let object = object.clone();
        self.with(async move |client| delete(client, &object).await).await
    }

    /// A token of a service account.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn token(&self, namespace: &'static str, name: &'static str) -> Result<String> {
        self.with(async move |client| {
            let api = Api::<ServiceAccount>::namespaced(client, namespace);
            let spec = TokenRequestSpec { audiences: Some(Vec::new()), ..TokenRequestSpec::default() };
            let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
            let answer = api.create_token_request(name, &PostParams::default(), &request).await?;
            answer.status.and_then(|s| s.token).filter(|t| !t.is_empty()).context("no token")
        })
        .await
    }

    /// A file for clients in its namespace with these credentials.
    pub fn kubeconfig(&self, port: u16, user: &Value) -> String {
        self.kubeconfig_for(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), user)
    }

    /// A file for clients that reach it under an address.
    pub fn kubeconfig_for(&self, server: SocketAddr, user: &Value) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{server}"),
                "certificate-authority": self.folder.join("ca.pem"),
            }}],
            "users": [{"name": "c", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        })
        .to_string()
    }

    /// Its files: certificates, keys and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Credentials of an administrator.
    pub fn admin() -> Value {
        json!({"token": ADMIN_TOKEN})
    }

    /// Certificate and key in PEM of a server under addresses.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn server_certificate(&self, name: &str, addresses: &[&str]) -> Result<(String, String)> {
        self.issuer.issue(name, None, addresses)
    }

    /// SIGSTOP to the API server, or SIGCONT: it is there and does not answer.
    ///
    /// # Errors
    /// When none runs.
    pub fn pause_server(&self, paused: bool) -> Result<()> {
        use nix::sys::signal::{Signal, kill};
        let server = self.server.as_ref().context("no API server runs")?;
        let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(nix::unistd::Pid::from_raw(i32::try_from(server.id())?), signal)?)
    }

    /// Certificate and key of a user, in PEM.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn certificate(&self, user: &str, group: &str) -> Result<(String, String)> {
        self.issuer.issue(user, Some(group), &[])
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Already gone, if they cannot be killed.
        let _ = self.kill_server();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// Applies an object as an administrator.
///
/// # Errors
/// When the API server refuses it.
pub async fn apply(client: Client, mut object: Object, dry: bool) -> Result<Object> {
    // The status is written apart; a node's lists addresses under one key, which applying refuses.
    let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
    let name = object["metadata"]["name"].as_str().context("no name")?.to_owned();
    let api = api_of(client, &object)?;
    let mut params = PatchParams::apply("tests").force();
    params.field_validation = Some(ValidationDirective::Strict);
    params.dry_run = dry;
    let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
    let mut applied = applied.with_context(|| format!("{} {name}", object["kind"]))?;
    if !dry && let Some(status) = status {
        let status = json!({"status": status});
        applied = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    }
    Ok(serde_json::to_value(applied)?)
}

/// Deletes an object as an administrator, without grace.
///
/// # Errors
/// When the API server refuses.
pub async fn delete(client: Client, object: &Object) -> Result<()> {
    let name = object["metadata"]["name"].as_str().context("no name")?;
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    api_of(client, object)?.delete(name, &params).await?;
    Ok(())
}

fn api_of(client: Client, object: &Object) -> Result<Api<DynamicObject>> {
    let text = |field: &str| object[field].as_str().with_context(|| format!("no {field}"));
    let version = text("apiVersion")?;
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")?));
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    })
}

/// An executable of the control plane, with its output in a file.
fn program(folder: &Path, name: &str) -> Result<Command> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/kubernetes/control");
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| PathBuf::from(built), PathBuf::from);
    let executable = assets.join(name);
    if !executable.exists() {
        bail!("no {} (`cargo xtask test` builds it)", executable.display());
    }
    let mut command = Command::new(executable);
    log_to(&mut command, &folder.join(format!("{name}.log")))?;
    Ok(command)
}

/// Lets a child write to the end of a file, read nothing, and die with the thread that starts it.
///
/// # Errors
/// When the file cannot be opened.
pub fn log_to(command: &mut Command, log: &Path) -> Result<()> {
    let log = File::options().create(true).append(true).open(log).context("cannot open a log")?;
    // Ctrl-C is for whoever runs it, and it goes when that one does.
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    die_with_parent(command);
    Ok(())
}

pub(crate) async fn spawn(namespace: &Namespace, mut command: Command) -> Result<Child> {
    namespace.run(move || command.spawn()).await?.context("cannot run an executable of Kubernetes")
}
