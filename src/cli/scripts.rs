//! `gigamerge scripts`: the Lua scripts, for writers in any language.

use clap::Args;

use super::output::{Align, PrintError, Table, print};
use crate::catalog::redis::scripts;

/// `gigamerge scripts`
#[derive(Debug, Args)]
pub struct ScriptsArgs {
    /// Print this script's complete text, ready for SCRIPT LOAD. Without it, list all with their SHA1.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// Why no script was shown.
#[derive(Debug, thiserror::Error)]
pub enum ScriptsError {
    /// There is none of that name.
    #[error("there is no script {name:?}; there are: {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
}

/// Lists the scripts, or prints one. Byte for byte: its SHA1 is the one that servers answer to.
pub fn run(args: &ScriptsArgs) -> Result<(), ScriptsError> {
    let all = scripts::all();
    let Some(name) = &args.name else {
        let mut table = Table::new([("NAME", Align::Left), ("SHA1", Align::Left)]);
        for script in all {
            table.push([script.name.to_owned(), script.sha1.clone()]);
        }
        return Ok(print(|out| table.write(out))?);
    };
    let script = all
        .iter()
        .find(|script| script.name == name)
        .ok_or_else(|| ScriptsError::Unknown {
            name: name.clone(),
            known: all.map(|script| script.name).join(", "),
        })?;
    Ok(print(|out| out.write_all(script.text.as_bytes()))?)
}
