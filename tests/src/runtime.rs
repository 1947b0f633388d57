//! A container runtime, as much of it as calls CNI plugins.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::agent::die_with_parent;
use crate::namespace::Namespace;

/// Name of the interface in pods.
pub const IFNAME: &str = "eth0";

/// One attachment that the runtime asks for.
#[derive(Clone, Debug)]
pub struct Attach {
    /// CNI_CONTAINERID
    pub container_id: String,
    /// CNI_NETNS; DEL may do without.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME
    pub ifname: String,
    /// CNI_ARGS
    pub args: BTreeMap<String, String>,
}

/// The error that a plugin printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// Code of the specification.
    pub code: u64,
    /// Short text.
    pub msg: String,
    /// Long text.
    pub details: String,
}

impl std::fmt::Display for CniError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CNI error {}: {} {}", self.code, self.msg, self.details)
    }
}

impl std::error::Error for CniError {}

/// Runs the plugins of a node's configuration.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Folder of configurations.
    pub configurations: PathBuf,
    /// Folder of executables.
    pub plugins: PathBuf,
}

impl Runtime {
    /// The configuration that counts: the first by name.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn configuration(&self) -> Result<Value> {
        let folder = &self.configurations;
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "conflist"));
        files.sort();
        let file = files.first().with_context(|| format!("no CNI configuration in {}", folder.display()))?;
        let text = std::fs::read_to_string(file)?;
        serde_json::from_str(&text).with_context(|| format!("{}: {text}", file.display()))
    }

    /// ADD by all plugins in order; the last one's result.
    ///
    /// # Errors
    /// A [`CniError`] where a plugin said so.
    pub async fn add(&self, node: &Namespace, attach: &Attach) -> Result<Value> {
        let list = self.configuration()?;
        let mut result = Value::Null;
        for plugin in plugins(&list) {
            result = self.invoke(node, "ADD", &list, plugin, attach, &result).await?;
        }
        Ok(result)
    }

    /// Starts ADD of the list's first plugin, for tests that interrupt it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_add(&self, node: &Namespace, attach: &Attach) -> Result<Child> {
        let list = self.configuration()?;
        let plugin = plugins(&list).next().context("a list without plugins")?;
        let (mut command, input) = self.command("ADD", &list, plugin, attach, &Value::Null)?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        die_with_parent(&mut command);
        let mut child = node.run(move || command.spawn()).await??;
        child.stdin.take().context("no standard input")?.write_all(&input)?;
        Ok(child)
    }

    /// CHECK by all plugins in order, against the result of ADD.
    ///
    /// # Errors
    /// A [`CniError`] where a plugin said so.
    pub async fn check(&self, node: &Namespace, attach: &Attach, result: &Value) -> Result<()> {
        let list = self.configuration()?;
        for plugin in plugins(&list) {
            self.invoke(node, "CHECK", &list, plugin, attach, result).await?;
        }
        Ok(())
    }

    /// DEL by all plugins in reverse order.
    ///
    /// # Errors
    /// A [`CniError`] where a plugin said so.
    pub async fn del(&self, node: &Namespace, attach: &Attach, result: &Value) -> Result<()> {
        let list = self.configuration()?;
        for plugin in plugins(&list).rev() {
            self.invoke(node, "DEL", &list, plugin, attach, result).await?;
        }
        Ok(())
    }

    /// Runs one plugin of a list.
    async fn invoke(
        &self,
        node: &Namespace,
        verb: &str,
        list: &Value,
        plugin: &Value,
        attach: &Attach,
        previous: &Value,
    ) -> Result<Value> {
        let (command, input) = self.command(verb, list, plugin, attach, previous)?;
        execute(node, command, input).await
    }

    /// The command that runs a plugin, and what it reads.
    fn command(
        &self,
        verb: &str,
        list: &Value,
        plugin: &Value,
        attach: &Attach,
        previous: &Value,
    ) -> Result<(Command, Vec<u8>)> {
        let mut configuration = plugin.clone();
        configuration["cniVersion"] = list["cniVersion"].clone();
        configuration["name"] = list["name"].clone();
        if !previous.is_null() {
            configuration["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let args: Vec<String> = attach.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut command = Command::new(self.plugins.join(kind));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attach.container_id)
            .env("CNI_IFNAME", &attach.ifname)
            .env("CNI_ARGS", args.join(";"))
            .env("CNI_PATH", &self.plugins);
        if let Some(netns) = &attach.netns {
            command.env("CNI_NETNS", netns);
        }
        Ok((command, serde_json::to_vec(&configuration)?))
    }
}

/// Runs a plugin's executable on a node, `input` on its standard input. Null where it prints nothing.
///
/// # Errors
/// A [`CniError`] where it printed one, another error where it broke the protocol.
pub async fn execute(node: &Namespace, mut command: Command, input: Vec<u8>) -> Result<Value> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_parent(&mut command);
    let executable = Path::new(command.get_program()).to_path_buf();
    let (sender, finished) = tokio::sync::oneshot::channel();
    // On a thread of its own in the node, so that several run at a time.
    node.run(move || {
        std::thread::spawn(move || {
            let mut run = || {
                let mut child = command.spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    stdin.write_all(&input)?;
                }
                child.wait_with_output()
            };
            let _ = sender.send(run());
        });
    })
    .await?;
    let output = finished.await?.with_context(|| format!("cannot run {}", executable.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = || format!("{}: {:?}, {}", output.status, text, String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_str(&text).with_context(said);
    }
    let error: Value = serde_json::from_str(&text).with_context(said)?;
    let field = |name| error[name].as_str().unwrap_or_default().to_owned();
    match error["code"].as_u64() {
        Some(code) => Err(CniError { code, msg: field("msg"), details: field("details") }.into()),
        None => bail!("no error code: {}", said()),
    }
}

/// Addresses that a result gives to the attachment.
///
/// # Errors
/// When the result has none, or something else in their place.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().with_context(|| format!("no ips in {result}"))?;
    ips.iter()
        .map(|ip| {
            let address = ip["address"].as_str().with_context(|| format!("no address in {ip}"))?;
            Ok(address.parse::<IpNetwork>().with_context(|| address.to_owned())?.ip())
        })
        .collect()
}

fn plugins(list: &Value) -> std::slice::Iter<'_, Value> {
    list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
