//! How the API server is reached.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Longest time until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the API server and the credentials for it are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// In this file.
    Kubeconfig(PathBuf),
    /// Where Kubernetes puts them for a pod.
    InCluster,
}

/// Why the API server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file, or one that it names.
    #[error("--kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// What a pod should have.
    #[error("in-cluster: {0}")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The credentials.
    #[error("credentials for the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

impl Access {
    /// Whether this process runs in a pod of a cluster.
    pub fn is_in_cluster() -> bool {
        std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// A client with the credentials as they are now. Tokens in files are read again by themselves.
    ///
    /// # Errors
    /// Where a file is missing or cannot be understood.
    pub async fn client(&self) -> Result<Client, AccessError> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let error = |source| AccessError::Kubeconfig { path: path.clone(), source: Box::new(source) };
                let file = Kubeconfig::read_from(path).map_err(error)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)?
            }
            Self::InCluster => Config::incluster().map_err(|e| AccessError::InCluster(Box::new(e)))?,
        };
        config.connect_timeout = Some(CONNECT);
        Client::try_from(config).map_err(|e| AccessError::Client(Box::new(e)))
    }

    /// A number that changes when a client of before has credentials that are no longer those of the
    /// files: certificates and keys are read once only.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        // What cannot be read is as if empty.
        let mut add = |path: &Path| std::fs::read(path).unwrap_or_default().hash(&mut hasher);
        if let Self::Kubeconfig(path) = self {
            add(path);
            if let Ok(file) = Kubeconfig::read_from(path) {
                let clusters = file.clusters.iter().filter_map(|c| c.cluster.as_ref());
                clusters.filter_map(|c| c.certificate_authority.as_deref()).for_each(|p| add(p.as_ref()));
                for user in file.auth_infos.iter().filter_map(|u| u.auth_info.as_ref()) {
                    let files = [&user.client_certificate, &user.client_key];
                    files.into_iter().flatten().for_each(|p| add(p.as_ref()));
                }
            }
        }
        hasher.finish()
    }
}
