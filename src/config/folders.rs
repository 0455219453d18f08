//! Whether the folders of a configuration are there and ours to use.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::{check::Checked, problem::Report};

pub(super) fn check(checked: &Checked, report: &Report) {
    let mut roots: Vec<(&str, PathBuf)> = Vec::new();
    for setting in &checked.roots {
        if let Err(message) = usable(&setting.value) {
            report.problem(&setting.place, message);
        }
        // Links are resolved, so that one folder under two names is found out.
        let real = setting
            .value
            .canonicalize()
            .unwrap_or_else(|_| setting.value.clone());
        for (other_path, other) in &roots {
            if real == *other {
                report.problem(
                    &setting.place,
                    format!(
                        "{} is the folder of {other_path} too; each layer needs its own",
                        real.display()
                    ),
                );
            } else if let Some(inside) =
                first_part_below(&real, other).or_else(|| first_part_below(other, &real))
            {
                // Legal, and a lake may stand like this already; it breaks only by such a name.
                report.warning(
                    &setting.place,
                    &format!(
                        "{} and {} ({other_path}) lie inside each other; a database named {inside:?} in the outer one would mix with the inner one",
                        real.display(),
                        other.display()
                    ),
                );
            }
        }
        roots.push((&setting.place.path, real));
    }
    if let Some(setting) = &checked.scratch
        && let Err(message) = usable(&setting.value)
    {
        report.problem(&setting.place, message);
    }
}

/// The folder of `outer` through which `inner` is reached, if it lies inside.
fn first_part_below(inner: &Path, outer: &Path) -> Option<String> {
    let below = inner.strip_prefix(outer).ok()?;
    let first = below.components().next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

fn usable(folder: &Path) -> Result<(), String> {
    let shown = folder.display();
    match folder.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!(
            "{shown} does not exist; create it (mkdir -p {shown}) or correct the path"
        )),
        Err(error) => Err(format!("{shown} cannot be reached: {error}")),
        Ok(metadata) if !metadata.is_dir() => {
            Err(format!("{shown} is not a folder; name a folder"))
        }
        Ok(_) => rustix::fs::access(
            folder,
            Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
        )
        .map_err(|error| {
            format!(
                "{shown} is not readable and writable for this user ({error}); change its owner or mode, or run as its owner"
            )
        }),
    }
}
