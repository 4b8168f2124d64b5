//! Removes what agents have left behind.

use super::CaptureOptions;
use crate::capture::bpffs::NodeDir;
use crate::capture::cgroup::{self, Cgroup2};
use crate::capture::error::CaptureError;

/// Removes everything that agents of this node have left in the kernel: for when no agent runs any more.
///
/// # Errors
/// When an agent of this node is running, or a pin cannot be removed.
pub fn unload(options: &CaptureOptions) -> Result<usize, CaptureError> {
    let removed = match NodeDir::open_existing(&options.bpffs_dir)? {
        Some(dir) => dir.remove().map_err(CaptureError::io(format!(
            "removing {}",
            options.bpffs_dir.display()
        )))?,
        None => 0,
    };
    if let Ok(cgroup2) = Cgroup2::find(options.cgroup_root.as_deref()) {
        cgroup::remove_leftover(&cgroup2, &options.node_name);
    }
    Ok(removed)
}
