//! The command line: one file per command.
#![allow(clippy::doc_markdown, reason = "these comments are the text of --help")]

pub mod check_config;
pub mod demo;
pub mod import;
pub mod ls;
pub mod merge_files;
pub mod once;
mod output;
pub mod plan;
pub mod quarantine;
pub mod query;
pub mod run;
pub mod scripts;
mod time_argument;
pub mod undelete;
pub mod verify;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{ConfigSources, Overrides, Secret, parse_compression, parse_keep, parse_size},
    merge::{Compression, Keep, SortColumn},
};

/// Exit code for a configuration that was refused (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;

const AFTER_HELP: &str = "\
Settings come from, weakest first: defaults, the GIGAPI_ variables of a writer, the
configuration file, GIGAMERGE_ variables (GIGAMERGE_WORKER__LEASE=60s sets worker.lease),
the options of each command. `gigamerge check-config` shows the result.

Exit codes: 0 done, 1 failed, 2 wrong command line, 78 wrong configuration.";

/// Keeps a time-series lake of Parquet files healthy: merges many small files into few sorted ones.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Configuration file, TOML. Without it, $GIGAMERGE_CONFIG; without that, no file is read.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: merge what is due, again and again, until SIGTERM or Ctrl-C.
    ///
    /// SIGHUP reads the configuration again; when that is wrong, the old one stays. A first
    /// SIGTERM lets running merges finish for a set time; a second one stops at once.
    Run(RunArgs),
    /// Run every task until nothing is due, then exit. Made for cron jobs.
    Once(OnceArgs),
    /// See it work: a small writer and the daemon, for half a minute, in a folder of their own.
    Demo(DemoArgs),
    /// Show what is due and what each merge would do. Claims and changes nothing.
    Plan(PlanArgs),
    /// Check the configuration and print the effective one as TOML, secrets hidden.
    ///
    /// Everything that is wrong is listed at once on stderr, with exit code 78. Run it as the
    /// user that the daemon runs as: folders are checked with that user's rights.
    CheckConfig(CheckConfigArgs),
    /// Show the databases of the catalog, the tables of one, or the partitions of one table.
    ///
    /// Locks and changes nothing; may run beside the daemon.
    Ls(ls::LsArgs),
    /// Show the index entries of a table: path, rows, size, time range.
    ///
    /// Times select files that overlap them, edges included. Locks and changes nothing; may run
    /// beside the daemon.
    Query(query::QueryArgs),
    /// Show files and plans that are not merged any more, bring them back to work, or drop them.
    Quarantine(quarantine::QuarantineArgs),
    /// Register Parquet files that are there already, from their footers.
    ///
    /// Files in the table's folder of a layer stay where they are. Files elsewhere are copied into
    /// their own key=value folders, or into date=…/hour=… of their smallest time, and the
    /// originals stay. A file that was imported before is left alone, even if it was merged since.
    /// Files that cannot be read are reported and skipped (exit code 1).
    ///
    /// The embedded catalog is locked meanwhile: stop the daemon first. On Redis, stop programs
    /// that write this table without registering their files first.
    Import(import::ImportArgs),
    /// Bring back the files that a merge replaced, while they wait for their deletion.
    ///
    /// They come back in the place of the merged file, in one step: no row is there twice. That
    /// works as long as the merged file was not merged on itself. They are not merged again
    /// until `gigamerge quarantine retry` says so. The embedded catalog is locked meanwhile:
    /// stop the daemon first.
    Undelete(undelete::UndeleteArgs),
    /// Compare index, queues, files and footers both ways; list every difference; mend what is safe.
    ///
    /// May run beside daemons and writers. Exit code 0: no difference is left; 1: there are some.
    /// A repair changes only what is still as it was seen, and never deletes: it queues deletions,
    /// with their grace. On the embedded catalog, stop the daemon before --apply.
    Verify(verify::VerifyArgs),
    /// List the Lua scripts that run in Redis, or print one, for writers in any language.
    ///
    /// Needs no configuration: `gigamerge scripts patch_index | redis-cli -x script load`.
    Scripts(scripts::ScriptsArgs),
    /// Merge Parquet files into one sorted file, without a catalog or a configuration.
    ///
    /// The output appears only when it is complete and on disk; a file of its name is never
    /// overwritten. The inputs stay as they are. Rows with equal keys keep the order of the files.
    MergeFiles(MergeFilesArgs),
}

/// `gigamerge run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge once`
#[derive(Debug, Args)]
pub struct OnceArgs {
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for the demo's lake; must be empty or new. Without it, a fresh temporary folder.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How long to write and merge.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
}

/// `gigamerge plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// One JSON document instead of a table.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge check-config`
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge merge-files`
#[derive(Debug, Args)]
pub struct MergeFilesArgs {
    /// The file to write. Must not exist; its folder must.
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Sort columns; each may be followed by asc or desc and by nulls first or nulls last.
    #[arg(long, value_name = "COL", value_delimiter = ',', default_value = "__timestamp", value_parser = merge_files::sort_column)]
    pub order_by: Vec<SortColumn>,
    /// none, snappy, lz4, zstd or zstd(LEVEL).
    #[arg(long, value_name = "C", default_value = "snappy", value_parser = parse_compression)]
    pub compression: Compression,
    /// Key columns, every sort column among them: of rows with the same key one stays.
    #[arg(long, value_name = "COL", value_delimiter = ',')]
    pub dedup_by: Vec<String>,
    /// The row that stays: first or last in the order of FILEs, or max(COL).
    #[arg(long, value_name = "KEEP", default_value = "last", requires = "dedup_by", value_parser = parse_keep)]
    pub keep: Keep,
    /// Memory that the merge may use, such as "256 MiB"; what does not fit goes through scratch beside OUT.
    #[arg(long, value_name = "SIZE", default_value = "256 MiB", value_parser = parse_size)]
    pub memory: u64,
    /// Rows in a row group, at most.
    #[arg(long, value_name = "N", default_value_t = 122_880, value_parser = clap::value_parser!(u32).range(1..))]
    pub row_group_rows: u32,
    /// Threads that work at once: 1, or 2 for any larger number.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// Files to merge. @LIST reads their names from the file LIST, one on each line; a name that begins with @ is written ./@NAME.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Options that stand above every other source.
#[derive(Debug, Clone, Default, Args)]
pub struct CommonArgs {
    /// Folder of the lake: holds <database>/<table>/data/. Replaces the layers of the configuration.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Use the catalog in Redis: redis://[user:password@]host[:port][/database].
    ///
    /// Other users of this machine can see command lines: give passwords in the file or in
    /// GIGAMERGE_CATALOG__URL.
    #[arg(long, value_name = "URL", value_parser = secret)]
    pub catalog_url: Option<Secret>,
    /// error, warn, info, debug, trace, or a filter such as info,gigamerge::merge=debug.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Form of log lines.
    #[arg(long, value_name = "FORM", value_parser = ["text", "json"])]
    pub log_format: Option<String>,
}

/// Reads the command line; on a wrong one, or for `--help`, prints and exits as usual.
pub fn parse() -> Cli {
    Cli::parse()
}

impl Cli {
    /// Where this invocation takes its configuration from.
    pub fn sources(&self, common: &CommonArgs) -> ConfigSources {
        let env = ConfigSources::process_env();
        let file = self.config.clone().or_else(|| {
            env.get("GIGAMERGE_CONFIG")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        });
        ConfigSources {
            file,
            env,
            overrides: Overrides {
                data_dir: common.data_dir.clone(),
                catalog_url: common.catalog_url.clone(),
                log_level: common.log_level.clone(),
                log_format: common.log_format.clone(),
            },
        }
    }
}

// clap asks for a Result.
#[allow(clippy::unnecessary_wraps)]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_reach_the_configuration_and_passwords_stay_hidden() {
        let cli = Cli::parse_from([
            "gigamerge",
            "run",
            "--config",
            "/etc/x.toml",
            "--catalog-url",
            "redis://:hunter2@host",
            "--log-format",
            "json",
        ]);
        assert!(!format!("{cli:?}").contains("hunter2"));
        let Command::Run(args) = &cli.command else {
            panic!("not run: {cli:?}");
        };
        let sources = cli.sources(&args.common);
        assert_eq!(sources.file, Some(PathBuf::from("/etc/x.toml")));
        assert_eq!(sources.overrides.log_format.as_deref(), Some("json"));
        assert_eq!(
            sources.overrides.catalog_url,
            Some(Secret("redis://:hunter2@host".to_owned()))
        );
    }
}
