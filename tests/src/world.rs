//! The state of the world: a folder of Kubernetes objects that agents watch, as API server and kubelet
//! would have written them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

/// A Kubernetes object.
pub type Object = Value;

/// Reads the objects of a YAML text.
///
/// # Errors
/// When it is not YAML.
pub fn parse(yaml: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        match Value::deserialize(document)? {
            Value::Null => {}
            object => objects.push(object),
        }
    }
    Ok(objects)
}

/// Reads the objects of all YAML files of a folder.
///
/// # Errors
/// When a file cannot be read or is not YAML.
pub fn read(folder: &Path) -> Result<Vec<Object>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    let mut objects = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        objects.extend(parse(&text).with_context(|| file.display().to_string())?);
    }
    Ok(objects)
}

/// The object's kind, or nothing.
pub fn kind(object: &Object) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// What the boxes need to know of a Node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// metadata.name
    pub name: String,
    /// status.addresses of type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs
    pub pod_cidrs: Vec<IpNetwork>,
}

impl NodeSpec {
    /// Reads a Node.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn of(object: &Object) -> Result<Self> {
        let name = text(object, "/metadata/name")?;
        let mut addresses = Vec::new();
        for entry in object.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten() {
            if entry["type"] == "InternalIP" {
                addresses
                    .push(text(entry, "/address")?.parse().with_context(|| format!("node {name}: address"))?);
            }
        }
        let mut pod_cidrs = Vec::new();
        for cidr in object.pointer("/spec/podCIDRs").and_then(Value::as_array).into_iter().flatten() {
            let cidr = cidr.as_str().unwrap_or_default();
            pod_cidrs.push(cidr.parse().with_context(|| format!("node {name}: podCIDRs: {cidr:?}"))?);
        }
        if addresses.is_empty() || pod_cidrs.is_empty() {
            bail!("node {name} needs status.addresses and spec.podCIDRs");
        }
        Ok(Self { name: name.to_owned(), addresses, pod_cidrs })
    }
}

/// What a runtime needs to know of a Pod.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// spec.nodeName
    pub node: String,
    /// containerPort of all containers' ports, in order.
    pub ports: Vec<u16>,
}

impl PodSpec {
    /// Reads a Pod.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn of(object: &Object) -> Result<Self> {
        let containers = object.pointer("/spec/containers").and_then(Value::as_array);
        let ports = containers.into_iter().flatten().filter_map(|c| c["ports"].as_array()).flatten();
        Ok(Self {
            namespace: text(object, "/metadata/namespace")?.to_owned(),
            name: text(object, "/metadata/name")?.to_owned(),
            node: text(object, "/spec/nodeName")?.to_owned(),
            ports: ports
                .filter_map(|p| p["containerPort"].as_u64())
                .map(u16::try_from)
                .collect::<Result<_, _>>()
                .context("containerPort")?,
        })
    }
}

fn text<'o>(object: &'o Object, pointer: &str) -> Result<&'o str> {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("{} has no {pointer}", kind(object)))
}

/// The folder that agents watch.
#[derive(Clone, Debug)]
pub struct World {
    folder: PathBuf,
}

impl World {
    /// An empty one.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes an object under a name of its own, whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn apply(&self, object: &Object) -> Result<()> {
        self.write(&Self::file(object), std::slice::from_ref(object))
    }

    /// Writes several objects into one file, which is what makes them take effect together.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &str, objects: &[Object]) -> Result<()> {
        let documents = objects.iter().map(serde_yaml_ng::to_string).collect::<Result<Vec<_>, _>>()?;
        self.write_text(file, &documents.join("---\n"))
    }

    /// Writes a file, whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        // Hidden names are not read, so nobody sees half a file.
        let beside = self.folder.join(format!(".{file}"));
        std::fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
        std::fs::rename(&beside, self.folder.join(file)).context("cannot rename")
    }

    /// Removes an object that [`apply`](Self::apply) wrote.
    ///
    /// # Errors
    /// When its file is not there.
    pub fn delete(&self, object: &Object) -> Result<()> {
        self.remove(&Self::file(object))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, file: &str) -> Result<()> {
        std::fs::remove_file(self.folder.join(file)).with_context(|| format!("cannot remove {file}"))
    }

    /// Removes the files whose names start like this.
    ///
    /// # Errors
    /// When the folder cannot be read, or a file not be removed.
    pub fn remove_all(&self, start: &str) -> Result<()> {
        let told = || format!("cannot empty {}", self.folder.display());
        for entry in std::fs::read_dir(&self.folder).with_context(told)? {
            let entry = entry.with_context(told)?;
            if entry.file_name().as_encoded_bytes().starts_with(start.as_bytes()) {
                std::fs::remove_file(entry.path()).with_context(told)?;
            }
        }
        Ok(())
    }

    fn file(object: &Object) -> String {
        let field = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
        let name = format!("{}.{}.{}", kind(object), field("/metadata/namespace"), field("/metadata/name"));
        format!("{}.yaml", name.to_lowercase())
    }
}

/// A namespace with labels.
pub fn namespace(name: &str, labels: Value) -> Object {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A node.
pub fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Object {
    let addresses: Vec<_> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs},
        "status": {"addresses": addresses},
    })
}

/// A pod, as it is before it runs, with the label `app` of its own name and one container.
pub fn pod(namespace: &str, name: &str, node: &str, ports: &[u16]) -> Object {
    let ports: Vec<_> = ports.iter().map(|p| json!({"containerPort": p})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none", "ports": ports}]},
    })
}

/// A NetworkPolicy.
pub fn policy(namespace: &str, name: &str, spec: Value) -> Object {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}
