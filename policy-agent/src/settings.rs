//! Flags, and the file that gives their defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use fairlead_api::{BPFFS, CNI_CONF_DIR, RUN_DIR, RunDir};
use fairlead_cluster::Access;
use fairlead_common::maps::DEFAULT_MARK_MASK;
use fairlead_datapath::Early;
use fairlead_policy::compiler::Limits;
use ipnetwork::IpNetwork;
use serde::Deserialize;

/// Connects the pods of this node and enforces NetworkPolicy.
#[derive(Debug, Default, Parser)]
#[command(name = "fairlead-agent", version)]
pub struct Flags {
    /// YAML file with settings: every key is a flag's name in camelCase; flags win.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings.
    #[command(flatten)]
    pub values: Values,
}

/// Settings as flags and file give them.
#[derive(Clone, Debug, Default, Deserialize, Parser)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Values {
    /// File that says how to reach the API server, the state of the world [default: as a pod of the
    /// cluster would].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Directory of Kubernetes manifests to take the state of the world from, instead of an API server.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Whether the taint fairlead.dev/agent-not-ready is taken from this node when the agent is ready
    /// [default: false].
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub remove_taint: Option<bool>,
    /// Name of this node [default: hostname].
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Directory of the socket and of what plugin and agent share [default: /run/fairlead].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory in a BPF file system [default: /sys/fs/bpf/fairlead].
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Where the container runtime looks for CNI configurations [default: /etc/cni/net.d].
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where to install the CNI executable, which lies beside the agent's, and to look for plugins that
    /// serve host ports and bandwidth (portmap, bandwidth) [default: neither].
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Interface towards the other nodes [default: the one with the node's InternalIP].
    #[arg(long, value_name = "INTERFACE")]
    pub uplink: Option<String>,
    /// Address for /healthz, /readyz and /metrics; empty for none [default: :9470].
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<String>,
    /// Format of the log: text or json [default: text].
    #[arg(long)]
    pub log_format: Option<LogFormat>,
    /// MTU of pods in bytes [default: the uplink's].
    #[arg(long)]
    pub mtu: Option<u32>,
    /// Whether packets between pods may skip the host's stack [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub fast_path: Option<bool>,
    /// Whether that holds between nodes, too [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub fast_path_between_nodes: Option<bool>,
    /// Where packets that policy denies whatever comes are dropped before the host's stack [default: off].
    #[arg(long)]
    pub xdp: Option<XdpMode>,
    /// Bits of the packet mark that may be used, at least 12 in a row [default: 0x0fff0000].
    #[arg(long, value_name = "MASK")]
    pub mark_mask: Option<String>,
    /// How long a pod's ADD waits for the pod's object, as 10s or 500ms [default: 10s].
    #[arg(long, value_name = "TIME")]
    pub add_timeout: Option<String>,
    /// How pods of other nodes are reached [default: vxlan].
    #[arg(long)]
    pub routing: Option<Routing>,
    /// Network identifier (VNI) of the overlay [default: 17996].
    #[arg(long, value_name = "ID")]
    pub vxlan_id: Option<u32>,
    /// UDP port of the overlay [default: 8472].
    #[arg(long, value_name = "PORT")]
    pub vxlan_port: Option<u16>,
    /// Whether pods are seen under the node's address outside of the cluster [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub masquerade: Option<bool>,
    /// What else is not outside: there, pods are seen under their own addresses [default: none].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub masquerade_exclude: Option<Vec<String>>,
    /// Most distinct sets of ports that policy on this node may need [default: 8192].
    #[arg(long, value_name = "NUMBER")]
    pub max_port_sets: Option<u32>,
    /// Most pairs of rules and peers that policy on this node may need [default: 262144].
    #[arg(long, value_name = "NUMBER")]
    pub max_rows: Option<u32>,
    /// Most pod addresses of each family that policy on this node may look at [default: 262144].
    #[arg(long, value_name = "NUMBER")]
    pub max_peers: Option<u32>,
    /// Most prefixes of each family that policy on this node may name [default: 65536].
    #[arg(long, value_name = "NUMBER")]
    pub max_cidrs: Option<u32>,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object to a line.
    Json,
}

/// Where the state of the world comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Cluster(Access),
}

/// Where XDP looks at packets of the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, where that can; else nowhere.
    Native,
    /// In the kernel, whatever the driver.
    Generic,
    /// Nowhere.
    #[default]
    Off,
}

impl From<XdpMode> for Early {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Native => Self::Native,
            XdpMode::Generic => Self::Generic,
            XdpMode::Off => Self::Off,
        }
    }
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// By an overlay, whatever is between the nodes.
    #[default]
    Vxlan,
    /// Directly where a node is on the same link, else by the overlay.
    Auto,
    /// Directly, which needs all nodes on a common link.
    Direct,
    /// By routes of somebody else.
    None,
}

impl Routing {
    /// Whether there is an overlay.
    pub fn tunnels(self) -> bool {
        matches!(self, Self::Vxlan | Self::Auto)
    }
}

/// Settings with their defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the state of the world comes from.
    pub source: Source,
    /// Whether a ready node loses its taint.
    pub remove_taint: bool,
    /// Name of this node.
    pub node_name: String,
    /// Run directory.
    pub run: RunDir,
    /// Directory in a BPF file system.
    pub bpffs: PathBuf,
    /// Directory of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Directory of CNI executables, where it was given.
    pub cni_bin_dir: Option<PathBuf>,
    /// Name of the uplink, where it was given.
    pub uplink: Option<String>,
    /// Address of the HTTP server; `None` for no server.
    pub http_listen: Option<String>,
    /// MTU of pods, where it was given.
    pub mtu: Option<u32>,
    /// Whether packets may skip the host's stack.
    pub fast_path: bool,
    /// Whether packets between pods of two nodes may, too.
    pub fast_path_between_nodes: bool,
    /// Where XDP looks at packets of the uplink.
    pub xdp: XdpMode,
    /// Bits of the packet mark.
    pub mark_mask: u32,
    /// How long an ADD waits.
    pub add_timeout: Duration,
    /// How pods of other nodes are reached.
    pub routing: Routing,
    /// Network identifier of the overlay.
    pub vxlan_id: u32,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// Whether pods' traffic to the outside is masqueraded.
    pub masquerade: bool,
    /// What is not outside, besides the cluster.
    pub masquerade_exclude: Vec<IpNetwork>,
    /// How much policy may need of what.
    pub limits: Limits,
}

impl Settings {
    /// What packets of the overlay bear, where there is one.
    pub fn overlay(&self) -> Option<fairlead_datapath::Overlay> {
        let overlay = fairlead_datapath::Overlay { port: self.vxlan_port, id: self.vxlan_id };
        self.routing.tunnels().then_some(overlay)
    }
}

/// A setting that cannot be used. The process ends with exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A value.
    #[error("{setting}: {message}")]
    Value {
        /// Name of the flag.
        setting: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The file.
    #[error("--config {}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// No source.
    #[error(
        "nothing says where the state of the world is to come from: give --kubeconfig FILE or \
         --manifests DIR, or run as a pod of a cluster"
    )]
    NoSource,
    /// Two sources.
    #[error("--kubeconfig and --manifests are two sources of the state of the world: give one")]
    TwoSources,
}

impl Values {
    /// Reads a settings file.
    ///
    /// # Errors
    /// Where it cannot be read, or has a key that is no setting.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let error = |message| SettingsError::File { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml_ng::from_str(&text).map_err(|e| error(e.to_string()))
    }

    /// These, and where they say nothing, the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            manifests: self.manifests.or(other.manifests),
            remove_taint: self.remove_taint.or(other.remove_taint),
            node_name: self.node_name.or(other.node_name),
            run_dir: self.run_dir.or(other.run_dir),
            bpffs: self.bpffs.or(other.bpffs),
            cni_conf_dir: self.cni_conf_dir.or(other.cni_conf_dir),
            cni_bin_dir: self.cni_bin_dir.or(other.cni_bin_dir),
            uplink: self.uplink.or(other.uplink),
            http_listen: self.http_listen.or(other.http_listen),
            log_format: self.log_format.or(other.log_format),
            mtu: self.mtu.or(other.mtu),
            fast_path: self.fast_path.or(other.fast_path),
            fast_path_between_nodes: self.fast_path_between_nodes.or(other.fast_path_between_nodes),
            xdp: self.xdp.or(other.xdp),
            mark_mask: self.mark_mask.or(other.mark_mask),
            add_timeout: self.add_timeout.or(other.add_timeout),
            routing: self.routing.or(other.routing),
            vxlan_id: self.vxlan_id.or(other.vxlan_id),
            vxlan_port: self.vxlan_port.or(other.vxlan_port),
            masquerade: self.masquerade.or(other.masquerade),
            masquerade_exclude: self.masquerade_exclude.or(other.masquerade_exclude),
            max_port_sets: self.max_port_sets.or(other.max_port_sets),
            max_rows: self.max_rows.or(other.max_rows),
            max_peers: self.max_peers.or(other.max_peers),
            max_cidrs: self.max_cidrs.or(other.max_cidrs),
        }
    }

    /// Fills in the defaults and checks all values.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn settle(self) -> Result<Settings, SettingsError> {
        let value = |setting, message| SettingsError::Value { setting, message };
        let source = match (self.kubeconfig, self.manifests) {
            (Some(_), Some(_)) => return Err(SettingsError::TwoSources),
            (Some(file), None) => Source::Cluster(Access::Kubeconfig(file)),
            (None, Some(folder)) => Source::Manifests(folder),
            (None, None) if Access::is_in_cluster() => Source::Cluster(Access::InCluster),
            (None, None) => return Err(SettingsError::NoSource),
        };
        let node_name = match self.node_name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_lowercase())
                .map_err(|e| value("--node-name", format!("not given, and the host's name: {e}")))?,
        };
        if let Some(mtu) = self.mtu
            && !(1280..=65535).contains(&mtu)
        {
            return Err(value("--mtu", format!("{mtu} is not between 1280 and 65535")));
        }
        let mark_mask = match self.mark_mask {
            None => DEFAULT_MARK_MASK,
            Some(text) => mark_mask(&text).map_err(|e| value("--mark-mask", e))?,
        };
        let add_timeout = match self.add_timeout {
            None => Duration::from_secs(10),
            Some(text) => duration(&text).map_err(|e| value("--add-timeout", e))?,
        };
        let size = |setting, given: Option<u32>, default: u32, most: u32| match given {
            None => Ok(default),
            Some(number) if (1..=most).contains(&number) => Ok(number),
            Some(number) => Err(value(setting, format!("{number} is not between 1 and {most}"))),
        };
        let default = Limits::default();
        let limits = Limits {
            sets: size("--max-port-sets", self.max_port_sets, default.sets, 1 << 18)?,
            rows: size("--max-rows", self.max_rows, default.rows, 1 << 24)?,
            peers: size("--max-peers", self.max_peers, default.peers, 1 << 24)?,
            cidrs: size("--max-cidrs", self.max_cidrs, default.cidrs, 1 << 22)?,
            ..default
        };
        let vxlan_id = self.vxlan_id.unwrap_or(0x464c);
        if vxlan_id == 0 || vxlan_id >= 1 << 24 {
            return Err(value("--vxlan-id", format!("{vxlan_id} is not between 1 and 16777215")));
        }
        let vxlan_port = self.vxlan_port.unwrap_or(8472);
        if vxlan_port == 0 {
            return Err(value("--vxlan-port", "0 is no port".to_owned()));
        }
        let http_listen = self.http_listen.unwrap_or_else(|| ":9470".to_owned());
        Ok(Settings {
            source,
            remove_taint: self.remove_taint.unwrap_or(false),
            node_name,
            run: RunDir(self.run_dir.unwrap_or_else(|| RUN_DIR.into())),
            bpffs: self.bpffs.unwrap_or_else(|| BPFFS.into()),
            cni_conf_dir: self.cni_conf_dir.unwrap_or_else(|| CNI_CONF_DIR.into()),
            cni_bin_dir: self.cni_bin_dir.filter(|dir| !dir.as_os_str().is_empty()),
            uplink: self.uplink.filter(|name| !name.is_empty()),
            http_listen: (!http_listen.is_empty()).then(|| {
                if http_listen.starts_with(':') { format!("[::]{http_listen}") } else { http_listen }
            }),
            mtu: self.mtu,
            fast_path: self.fast_path.unwrap_or(true),
            fast_path_between_nodes: self.fast_path_between_nodes.unwrap_or(true),
            xdp: self.xdp.unwrap_or_default(),
            mark_mask,
            add_timeout,
            routing: self.routing.unwrap_or_default(),
            vxlan_id,
            vxlan_port,
            masquerade: self.masquerade.unwrap_or(true),
            masquerade_exclude: networks(&self.masquerade_exclude.unwrap_or_default())
                .map_err(|e| value("--masquerade-exclude", e))?,
            limits,
        })
    }
}

fn networks(texts: &[String]) -> Result<Vec<IpNetwork>, String> {
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    texts
        .map(|text| {
            let parsed: IpNetwork = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
            IpNetwork::new(parsed.network(), parsed.prefix()).map_err(|e| format!("{text:?}: {e}"))
        })
        .collect()
}

fn mark_mask(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let mask = parsed.map_err(|_| format!("{text:?} is not a number of 32 bits"))?;
    let in_a_row = mask.count_ones() == 32 - mask.leading_zeros() - mask.trailing_zeros().min(32);
    if mask == 0 || mask.count_ones() < 12 || !in_a_row {
        return Err(format!("{text} does not have at least 12 bits, all in a row"));
    }
    if mask & 0xc000 != 0 {
        return Err(format!("{text} contains 0x4000 or 0x8000, which kube-proxy uses"));
    }
    Ok(mask)
}

fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a time such as 10s or 500ms");
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| error())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(error),
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Values {
        let words = ["fairlead-agent"].iter().chain(words);
        Flags::try_parse_from(words).unwrap().values
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(
            &file,
            "fastPath: false\nmtu: 1400\naddTimeout: 3s\nmaxRows: 7\nmaxPeers: 8\nnodeName: from-file\n",
        )
        .unwrap();
        let values = flags(&["--manifests", "/m", "--mtu", "1500", "--max-peers", "9"])
            .or(Values::read(&file).unwrap());
        let settings = Values { node_name: Some("n".into()), ..values }.settle().unwrap();
        assert_eq!(settings.mtu, Some(1500));
        assert!(!settings.fast_path);
        assert_eq!(settings.limits, Limits { rows: 7, peers: 9, ..Limits::default() });
        assert_eq!(settings.add_timeout, Duration::from_secs(3));
        assert_eq!(settings.run.path(), Path::new("/run/fairlead"));
        assert_eq!(settings.http_listen.as_deref(), Some("[::]:9470"));
        assert_eq!(settings.mark_mask, DEFAULT_MARK_MASK);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert_eq!(flags(&[]).settle(), Err(SettingsError::NoSource));
        let both = flags(&["--manifests", "/m", "--kubeconfig", "/k"]);
        assert_eq!(both.settle(), Err(SettingsError::TwoSources));
        let cluster = flags(&["--kubeconfig", "/k", "--node-name", "n"]).settle().unwrap().source;
        assert_eq!(cluster, Source::Cluster(Access::Kubeconfig("/k".into())));
        for (words, flag) in [
            (&["--mark-mask", "0xff"][..], "--mark-mask"),
            (&["--mark-mask", "0xffff"], "--mark-mask"),
            (&["--mark-mask", "0xf0ff0000"], "--mark-mask"),
            (&["--add-timeout", "soon"], "--add-timeout"),
            (&["--mtu", "100"], "--mtu"),
            (&["--max-port-sets", "0"], "--max-port-sets"),
            (&["--max-rows", "16777217"], "--max-rows"),
            (&["--max-peers", "0"], "--max-peers"),
            (&["--max-cidrs", "0"], "--max-cidrs"),
        ] {
            let mut all = vec!["--manifests", "/m", "--node-name", "n"];
            all.extend(words);
            let error = flags(&all).settle().unwrap_err();
            assert!(matches!(&error, SettingsError::Value { setting, .. } if *setting == flag), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "fast-path: false\n").unwrap();
        let error = Values::read(&file).unwrap_err().to_string();
        assert!(error.contains("fast-path"), "{error}");
        assert_eq!(flags(&["--manifests", "/m", "--http-listen", ""]).settle().unwrap().http_listen, None);
    }

    #[test]
    fn the_manifest_names_every_setting_with_its_default() {
        use clap::CommandFactory as _;
        let manifest = include_str!("../../manifests/fairlead.yaml");
        let text = manifest.split_once("fairlead.yaml: |\n").unwrap().1.split_once("\n---").unwrap().0;
        let camel = |flag: &str| {
            let mut words = flag.split('-');
            let first = words.next().unwrap().to_owned();
            words.fold(first, |all, word| all + &word[..1].to_uppercase() + &word[1..])
        };
        let command = Flags::command();
        let flags = command.get_arguments().filter_map(clap::Arg::get_long);
        for flag in flags.filter(|f| !matches!(*f, "config" | "help" | "version")) {
            let key = camel(flag);
            let names = |line: &str| line.trim_start_matches([' ', '#']).starts_with(&format!("{key}:"));
            assert!(text.lines().any(names), "{key} is missing in the ConfigMap");
        }
        let defaults =
            Values { node_name: Some("n".into()), manifests: Some("/m".into()), ..Values::default() };
        let file: Values = serde_yaml_ng::from_str(text).unwrap();
        assert_eq!(defaults.clone().or(file).settle(), defaults.settle());
    }
}
