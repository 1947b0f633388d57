//! `cargo xtask image`: the executables as an OCI image, without a container engine.
//!
//! It has one layer with three static executables and nothing else: no shell, no libraries.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::oci::{self, Description, File, sha256};
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

impl Default for Options {
    fn default() -> Self {
        Self { output: "target/image/fairlead.tar".into(), name: NAME.to_owned(), from: None }
    }
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
    let mut files = Vec::new();
    for program in build::EXECUTABLES {
        let path = from.join(program);
        let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push(File { path: program.to_owned(), content });
    }
    let description = Description {
        name,
        entrypoint: "/fairlead-agent",
        arguments: &[],
        label: ("fairlead", env!("CARGO_PKG_VERSION")),
        made_by: "cargo xtask image",
    };
    Ok(oci::image(&files, &description))
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
