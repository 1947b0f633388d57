//! Container images without a container engine: a tar file that `ctr images import`, `podman load` and
//! `kind load image-archive` take. The same content makes the same bytes, so a digest says what is in it.

use sha2::{Digest as _, Sha256};

/// A file of an image.
#[derive(Debug)]
pub(crate) struct File {
    /// Its path from the root, without the first slash.
    pub(crate) path: String,
    /// Its content; everything in an image can be run.
    pub(crate) content: Vec<u8>,
}

/// What an image says of itself.
#[derive(Debug)]
pub(crate) struct Description<'a> {
    /// Name and tag.
    pub(crate) name: &'a str,
    /// What it runs when nothing else is asked for.
    pub(crate) entrypoint: &'a str,
    /// With what, then.
    pub(crate) arguments: &'a [&'a str],
    /// Title and version, for people.
    pub(crate) label: (&'a str, &'a str),
    /// What made it.
    pub(crate) made_by: &'a str,
}

/// The image with these files in one layer.
pub(crate) fn image(files: &[File], description: &Description<'_>) -> Vec<u8> {
    let Description { name, entrypoint, arguments, label: (title, version), made_by } = description;
    let mut layer = Tar::default();
    for file in files {
        layer.file(&file.path, 0o755, &file.content);
    }
    let layer = layer.end();
    let arguments = match arguments {
        [] => String::new(),
        some => format!(r#""Cmd":["{}"],"#, some.join(r#"",""#)),
    };
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","created":"1970-01-01T00:00:00Z","config":{{"Entrypoint":["{entrypoint}"],{arguments}"User":"0:0","Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Labels":{{"org.opencontainers.image.title":"{title}","org.opencontainers.image.version":"{version}","org.opencontainers.image.licenses":"MIT OR Apache-2.0"}}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":[{{"created":"1970-01-01T00:00:00Z","created_by":"{made_by}"}}]}}"#,
        architecture(),
        sha256(&layer),
    );
    let descriptor = |kind: &str, blob: &[u8], more: &str| {
        let (digest, size) = (sha256(blob), blob.len());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}{more}}}"#
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        descriptor("config.v1+json", config.as_bytes(), ""),
        descriptor("layer.v1.tar", &layer, ""),
    );
    // containerd takes the name from its own annotation, others from OCI's.
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let annotations = format!(
        r#","annotations":{{"io.containerd.image.name":"{name}","org.opencontainers.image.ref.name":"{tag}"}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
        descriptor("manifest.v1+json", manifest.as_bytes(), &annotations),
    );
    let blob = |content: &[u8]| sha256(content).replacen("sha256:", "blobs/sha256/", 1);
    // Docker's own list, for `docker load` and those that do as it does.
    let docker = format!(
        r#"[{{"Config":"{}","RepoTags":["{name}"],"Layers":["{}"]}}]"#,
        blob(config.as_bytes()),
        blob(&layer),
    );
    let mut tar = Tar::default();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.file("index.json", 0o644, index.as_bytes());
    tar.file("manifest.json", 0o644, docker.as_bytes());
    for content in [config.as_bytes(), manifest.as_bytes(), &layer] {
        tar.file(&blob(content), 0o644, content);
    }
    tar.end()
}

/// What Go, and so every registry, calls this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar file (POSIX ustar) that says nothing of the machine and the moment of its making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    const BLOCK: usize = 512;

    /// Adds a file of root. Its name has at most 100 bytes, all ours do.
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        let mut header = [0; Self::BLOCK];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        // The checksum is made as if it were blanks.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar");
        put(263, "00");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(Self::BLOCK), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * Self::BLOCK, 0);
        self.0
    }
}
