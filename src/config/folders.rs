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
            } else if real.starts_with(other) || other.starts_with(&real) {
                report.problem(
                    &setting.place,
                    format!(
                        "{} and {} ({other_path}) lie inside each other; each layer needs a folder of its own",
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
