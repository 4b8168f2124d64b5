//! An image as the OCI has it (Image Format Specification 1.1: image-layout, manifest, config), in one archive, with the file that
//! `docker load` of older versions looks for. One layer.

use anyhow::Result;
use serde_json::{Value, json};

use crate::archive::{Archive, digest, gzip};

/// An image that is being made.
pub(super) struct Image {
    name: String,
    version: String,
    time: u64,
    files: Vec<(String, u32, Vec<u8>)>,
}

/// This machine's processors, by the name that the OCI has for them (Go's).
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: digest(&bytes),
            bytes,
        }
    }

    fn json(media_type: &'static str, value: &Value) -> Result<Self> {
        Ok(Self::new(media_type, serde_json::to_vec(value)?))
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len() })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

impl Image {
    /// An image without files. `time` is in seconds since 1970.
    pub(super) fn new(name: &str, version: &str, time: u64) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            time,
            files: Vec::new(),
        }
    }

    /// Adds a file of root's.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.files.push((path.to_owned(), mode, content));
    }

    /// The archive's bytes.
    pub(super) fn archive(&self) -> Result<Vec<u8>> {
        let mut layer = Archive::new(self.time);
        for (path, mode, content) in &self.files {
            layer.file(path, *mode, content)?;
        }
        let layer = layer.finish()?;
        let unpacked = digest(&layer);
        let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layer)?);
        let config = Blob::json(
            "application/vnd.oci.image.config.v1+json",
            &self.config(&unpacked),
        )?;
        let manifest = Blob::json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
            }),
        )?;
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let mut entry = manifest.descriptor();
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        // The first is what containerd calls it, the second what the specification has.
        entry["annotations"] =
            json!({ "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let docker = json!([{ "Config": config.path(), "RepoTags": [self.name], "Layers": [layer.path()] }]);
        let mut archive = Archive::new(self.time);
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        archive.file("manifest.json", 0o644, &serde_json::to_vec(&docker)?)?;
        for blob in [&config, &manifest, &layer] {
            archive.file(blob.path(), 0o644, &blob.bytes)?;
        }
        archive.finish()
    }

    fn config(&self, unpacked: &str) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/bin"],
                "Entrypoint": ["/usr/local/bin/mesh-agent"],
                "Cmd": ["run"],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": "mesh-agent",
                    "org.opencontainers.image.version": self.version,
                    "org.opencontainers.image.licenses": "Apache-2.0 AND (MIT OR GPL-2.0-only)",
                },
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{unpacked}")] },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    fn image() -> Vec<u8> {
        let mut image = Image::new("localhost/mesh-agent:0.1.0", "0.1.0", 1_700_000_000);
        image.file("usr/local/bin/mesh-agent", 0o755, b"a program".to_vec());
        image.archive().unwrap()
    }

    /// The blob that a descriptor means, checked against what the descriptor says.
    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let bytes = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(super::digest(bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    #[test]
    fn the_index_leads_to_the_manifest_and_that_to_the_files() {
        let files = unpack(&image());
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "localhost/mesh-agent:0.1.0"
        );
        assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "0.1.0");
        let manifest: Value = serde_json::from_slice(blob(&files, entry)).unwrap();
        let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
        let layer = blob(&files, &manifest["layers"][0]);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(layer)
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(&unpacked))
        );
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/local/bin/mesh-agent");
        assert_eq!(unpack(&unpacked)["usr/local/bin/mesh-agent"], b"a program");
        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        assert_eq!(image(), image());
    }
}
