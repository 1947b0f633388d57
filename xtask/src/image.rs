//! `cargo xtask image`: the executables as an OCI image, without a container engine.
//!
//! The image is a tar file that `ctr images import`, `podman load` and `kind load image-archive` take.
//! It has one layer with three static executables and nothing else: no shell, no libraries. The same
//! executables make the same bytes, so a digest says what is in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::{build, workspace};

/// Name of the image, as `manifests/fairlead.yaml` has it.
const NAME: &str = concat!("fairlead.dev/fairlead:", env!("CARGO_PKG_VERSION"));

/// Arguments of `image`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where to.
    #[arg(long, short, value_name = "FILE", default_value = "target/image/fairlead.tar")]
    output: PathBuf,
    /// Name and tag.
    #[arg(long, default_value = NAME)]
    name: String,
    /// Take the executables in this folder, instead of building them.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

/// Builds the executables and the image.
pub(crate) fn run(options: &Options) -> Result<()> {
    let from = match &options.from {
        Some(folder) => folder.clone(),
        None => {
            build::run(&build::Options::default())?;
            workspace::dist()
        }
    };
    let output = workspace::root().join(&options.output);
    let image = image(&from, &options.name)?;
    let folder = output.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(&output, &image).with_context(|| format!("cannot write {}", output.display()))?;
    println!(
        "image: {} ({} MiB), {} of {}\n  sudo ctr -n k8s.io images import {}",
        options.name,
        image.len() >> 20,
        sha256(&image),
        output.display(),
        options.output.display()
    );
    Ok(())
}

/// The image with the executables of a folder.
fn image(from: &Path, name: &str) -> Result<Vec<u8>> {
    let mut layer = Tar::default();
    for program in build::EXECUTABLES {
        let path = from.join(program);
        let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        layer.file(program, 0o755, &content);
    }
    let layer = layer.end();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","created":"1970-01-01T00:00:00Z","config":{{"Entrypoint":["/fairlead-agent"],"User":"0:0","Labels":{{"org.opencontainers.image.title":"fairlead","org.opencontainers.image.version":"{}","org.opencontainers.image.licenses":"MIT OR Apache-2.0"}}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":[{{"created":"1970-01-01T00:00:00Z","created_by":"cargo xtask image"}}]}}"#,
        architecture(),
        env!("CARGO_PKG_VERSION"),
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
    Ok(tar.end())
}

/// What Go, and so every registry, calls this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(content: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;

    /// A folder of its own for each test.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("fairlead-image-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn made(name: &str) -> (PathBuf, Vec<u8>) {
        let folder = folder(name);
        for program in build::EXECUTABLES {
            std::fs::write(folder.join(program), format!("{program} {}", "x".repeat(700))).unwrap();
        }
        let image = image(&folder, "example.org/a/fairlead:1").unwrap();
        (folder, image)
    }

    /// What an independent reader finds in a tar file.
    fn unpacked(folder: &Path, image: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let (file, to) = (folder.join("x.tar"), folder.join("unpacked"));
        std::fs::write(&file, image).unwrap();
        std::fs::create_dir_all(&to).unwrap();
        let tar = |args: &[&str]| {
            let output = Command::new("tar").args(args).arg(&file).arg("-C").arg(&to).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        tar(&["-xf"]);
        let names = tar(&["-tf"]);
        names.lines().map(|name| (name.to_owned(), std::fs::read(to.join(name)).unwrap())).collect()
    }

    #[test]
    fn the_same_executables_make_the_same_bytes_whatever_their_times() {
        let (folder, first) = made("same");
        for program in build::EXECUTABLES {
            let file = std::fs::File::options().append(true).open(folder.join(program)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        assert_eq!(image(&folder, "example.org/a/fairlead:1").unwrap(), first);
        std::fs::write(folder.join("fairlead"), "another").unwrap();
        assert_ne!(image(&folder, "example.org/a/fairlead:1").unwrap(), first);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_the_layer_holds_the_executables() {
        let (folder, image) = made("layout");
        let files = unpacked(&folder, &image);
        let blobs: Vec<_> =
            files.iter().filter_map(|(n, c)| Some((n.strip_prefix("blobs/sha256/")?, c))).collect();
        assert_eq!(blobs.len(), 3);
        for (digest, content) in &blobs {
            assert_eq!(sha256(content), format!("sha256:{digest}"));
        }
        // Whatever one file says of another is there.
        let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
        let manifest = blobs.iter().find(|(_, c)| c.starts_with(br#"{"schemaVersion""#)).unwrap();
        assert!(text("index.json").contains(manifest.0));
        assert!(text("index.json").contains(r#""io.containerd.image.name":"example.org/a/fairlead:1""#));
        let manifest = String::from_utf8(manifest.1.clone()).unwrap();
        for (digest, content) in &blobs {
            let named = manifest.contains(digest) && text("manifest.json").contains(digest);
            assert_eq!(named, !content.starts_with(br#"{"schemaVersion""#));
        }
        let layer = blobs.iter().find(|(_, c)| !c.starts_with(b"{")).unwrap().1;
        let inside = self::folder("layer");
        let programs = unpacked(&inside, layer);
        assert_eq!(programs.len(), build::EXECUTABLES.len());
        for program in build::EXECUTABLES {
            assert_eq!(programs[program], std::fs::read(folder.join(program)).unwrap());
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(inside.join("unpacked").join(program)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
        }
        std::fs::remove_dir_all(folder).unwrap();
        std::fs::remove_dir_all(inside).unwrap();
    }

    #[test]
    fn the_manifest_names_this_image() {
        let manifest = std::fs::read_to_string(workspace::root().join("manifests/fairlead.yaml")).unwrap();
        let images: Vec<_> = manifest.lines().filter_map(|l| l.trim().strip_prefix("image: ")).collect();
        assert_eq!(images, [NAME; 3]);
    }
}
