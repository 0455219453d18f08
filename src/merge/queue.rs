//! The work that waits for the columns of an output, and who is at what.

use std::{collections::VecDeque, sync::Arc};

use super::gather::Gathered;

/// The queue.
pub(super) struct State {
    /// Oldest first. Each column takes its jobs in this order, whatever the others do.
    pub(super) jobs: VecDeque<Job>,
    /// Jobs that are done and gone.
    jobs_gone: u64,
    columns: Vec<Progress>,
    /// What ends the merge.
    pub(super) error: Option<String>,
    /// Nothing more will come.
    pub(super) is_stopped: bool,
}

/// How far a column is.
#[derive(Clone, Copy, Default)]
pub(super) struct Progress {
    /// Its jobs that are done.
    jobs_done: u64,
    is_busy: bool,
    /// Somebody compresses its pages.
    is_packing: bool,
}

/// What a thread does at a time.
pub(super) enum Task {
    /// A column's next job.
    Job(Work, usize),
    /// Compressing a page of a column.
    Pack(usize),
}

/// Work, and how much of it is done.
pub(super) struct Job {
    work: Work,
    done_count: usize,
}

impl Job {
    /// Bytes that the job waits with.
    pub(super) fn size_bytes(&self) -> u64 {
        match &self.work {
            Work::Encode { rows, .. } => rows.size_bytes(),
            Work::Close => 0,
        }
    }
}

impl State {
    /// Nothing to do for any of the columns.
    pub(super) fn new(column_count: usize) -> Self {
        Self {
            jobs: VecDeque::new(),
            jobs_gone: 0,
            columns: vec![Progress::default(); column_count],
            error: None,
            is_stopped: false,
        }
    }

    /// Queues work for all columns.
    pub(super) fn submit(&mut self, work: Work) {
        self.jobs.push_back(Job {
            work,
            done_count: 0,
        });
    }

    /// Pages of a column were compressed.
    pub(super) fn end_packing(&mut self, index: usize) {
        self.columns[index].is_packing = false;
    }

    /// Whether a row group is still being closed.
    pub(super) fn is_closing(&self) -> bool {
        self.jobs.iter().any(|job| matches!(job.work, Work::Close))
    }

    /// The oldest work that a column can do now. `has_pages`: whether a column has pages that wait
    /// to be compressed.
    pub(super) fn take_task(&mut self, has_pages: impl Fn(usize) -> bool) -> Option<Task> {
        let waiting = self.jobs_gone + self.jobs.len() as u64;
        let columns = self.columns.iter().enumerate();
        // A column that somebody works at would have to compress itself.
        let mut behind = columns.clone();
        let packing = behind
            .find(|(index, column)| column.is_busy && !column.is_packing && has_pages(*index));
        if let Some((index, _)) = packing {
            self.columns[index].is_packing = true;
            return Some(Task::Pack(index));
        }
        let ready = columns.filter(|(_, column)| !column.is_busy && column.jobs_done < waiting);
        let (index, column) = ready.min_by_key(|(_, column)| column.jobs_done)?;
        let job = usize::try_from(column.jobs_done - self.jobs_gone).ok()?;
        let work = self.jobs.get(job)?.work.clone();
        self.columns[index].is_busy = true;
        Some(Task::Job(work, index))
    }

    /// A column's oldest job is done. Tells whether anybody may have waited for that.
    pub(super) fn end_task(&mut self, index: usize) -> bool {
        let column_count = self.columns.len();
        let column = &mut self.columns[index];
        let job = usize::try_from(column.jobs_done - self.jobs_gone).unwrap_or(usize::MAX);
        column.jobs_done += 1;
        column.is_busy = false;
        // Whoever sleeps may take the column's next job.
        let has_more = column.jobs_done < self.jobs_gone + self.jobs.len() as u64;
        if let Some(job) = self.jobs.get_mut(job) {
            job.done_count += 1;
        }
        let mut is_gone = false;
        while self
            .jobs
            .front()
            .is_some_and(|job| job.done_count == column_count)
        {
            self.jobs.pop_front();
            self.jobs_gone += 1;
            is_gone = true;
        }
        has_more || is_gone
    }
}

/// What is to be done with every column.
#[derive(Clone)]
pub(super) enum Work {
    Encode {
        rows: Arc<Gathered>,
        start: usize,
        count: usize,
    },
    Close,
}
