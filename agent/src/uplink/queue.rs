//! Windows that the detector has not settled yet, in memory. Pure.
//!
//! Bounded by number and by encoded bytes. When a window comes and there is no room, the oldest that was not yet
//! handed to a connection goes (the oldest of all, if all were), is counted, and is declared in `lost_windows` of
//! the window after it. Sequences are given here, from 1, and a lost window keeps its own: the detector sees the gap. What
//! a broken connection left unsettled is sent again. It may declare more by then, or less once a welcome tells that
//! what was dropped meanwhile had arrived.

use std::collections::VecDeque;

use davy_proto::v1;
use prost::Message;

/// A window whose encoding is longer is never sent: the detector's limit for a message is 4 MiB (tonic's default).
pub const WINDOW_BYTES_MAX: usize = (4 << 20) - 1024;

/// Windows handed to a connection and not yet settled, at most.
pub const IN_FLIGHT_MAX: usize = 64;

/// What the queue may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Windows; at least 1.
    pub windows_max: usize,
    /// Bytes of encoded windows. The newest window is kept even if it alone is more.
    pub bytes_max: usize,
}

/// What became of the windows, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Closed and put into the queue.
    pub closed: u64,
    /// Settled by an acknowledgement.
    pub acknowledged: u64,
    /// Refused by the detector.
    pub rejected: u64,
    /// Dropped for want of room, or too large to be sent.
    pub lost: u64,
    /// Handed to a connection again after an earlier one broke.
    pub resent: u64,
}

#[derive(Debug)]
struct Entry {
    window: v1::Window,
    bytes: usize,
    was_sent: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Entry>,
    limits: Limits,
    bytes: usize,
    /// Of the entries at the front: how many were handed to the present connection.
    in_flight: usize,
    last_sequence: u64,
    /// Lost since the last window put in, to be declared by the next.
    undeclared: u64,
    counts: Counts,
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            entries: VecDeque::new(),
            limits: Limits {
                windows_max: limits.windows_max.max(1),
                ..limits
            },
            bytes: 0,
            in_flight: 0,
            last_sequence: 0,
            undeclared: 0,
            counts: Counts::default(),
        }
    }

    /// Windows in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether every window was settled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Encoded bytes in the queue.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the present connection owes an answer.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.in_flight > 0
    }

    /// What became of the windows so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Puts a window in; its sequence and losses are set here. Returns its sequence.
    pub fn push(&mut self, mut window: v1::Window) -> u64 {
        self.last_sequence += 1;
        self.counts.closed += 1;
        window.sequence = self.last_sequence;
        window.lost_windows = std::mem::take(&mut self.undeclared);
        let bytes = window.encoded_len();
        if bytes > WINDOW_BYTES_MAX {
            self.undeclared = window.lost_windows.saturating_add(1);
            self.counts.lost += 1;
            return self.last_sequence;
        }
        self.bytes += bytes;
        self.entries.push_back(Entry {
            window,
            bytes,
            was_sent: false,
        });
        while self.entries.len() > 1
            && (self.entries.len() > self.limits.windows_max || self.bytes > self.limits.bytes_max)
        {
            self.drop_oldest();
        }
        self.last_sequence
    }

    /// The next window to hand to the connection; `None` if there is none, or too many await their answer.
    pub fn next_to_send(&mut self) -> Option<v1::Window> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let entry = self.entries.get_mut(self.in_flight)?;
        self.in_flight += 1;
        if entry.was_sent {
            self.counts.resent += 1;
        }
        entry.was_sent = true;
        Some(entry.window.clone())
    }

    /// Everything up to and including `sequence` is settled.
    pub fn acknowledge(&mut self, sequence: u64) {
        while let Some(entry) = self.entries.pop_front_if(|e| e.window.sequence <= sequence) {
            self.bytes -= entry.bytes;
            self.in_flight = self.in_flight.saturating_sub(1);
            self.counts.acknowledged += 1;
        }
        self.withdraw_declared(sequence);
    }

    /// A window dropped after an earlier connection had taken it may turn out to be settled: the detector has lost
    /// nothing then, though it was dropped here. What the front declares lies between the settled sequence and its own.
    fn withdraw_declared(&mut self, settled: u64) {
        let Some(front) = self.entries.front_mut() else {
            return;
        };
        let gap = front.window.sequence.saturating_sub(settled + 1);
        if settled == 0 || front.window.lost_windows <= gap {
            return;
        }
        front.window.lost_windows = gap;
        let before = std::mem::replace(&mut front.bytes, front.window.encoded_len());
        self.bytes = self.bytes - before + front.bytes;
    }

    /// The detector will never take this one, but for what it declares: its losses are counted with it. What came before
    /// it keeps waiting for its own answer.
    pub fn reject(&mut self, sequence: u64) {
        let Some(position) = self.position(sequence) else {
            return;
        };
        if let Some(entry) = self.entries.remove(position) {
            self.bytes -= entry.bytes;
            self.counts.rejected += 1;
            if position < self.in_flight {
                self.in_flight -= 1;
            }
        }
    }

    /// The connection is gone: what it did not settle will be sent again.
    pub fn connection_lost(&mut self) {
        self.in_flight = 0;
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        self.entries
            .binary_search_by_key(&sequence, |entry| entry.window.sequence)
            .ok()
    }

    fn drop_oldest(&mut self) {
        // The newest entry, just put in, is never the victim.
        let unsent = self.in_flight;
        let victim = if unsent + 1 < self.entries.len() {
            unsent
        } else {
            0
        };
        let Some(entry) = self.entries.remove(victim) else {
            return;
        };
        self.bytes -= entry.bytes;
        self.counts.lost += 1;
        if victim < self.in_flight {
            self.in_flight -= 1;
        }
        // Declared by the first window after it that has not been handed over.
        if let Some(next) = self.entries.get_mut(victim.max(self.in_flight)) {
            let before = next.bytes;
            next.window.lost_windows = next
                .window
                .lost_windows
                .saturating_add(entry.window.lost_windows)
                .saturating_add(1);
            next.bytes = next.window.encoded_len();
            self.bytes = self.bytes - before + next.bytes;
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
