//! What goes wrong, and how all of it ends.

use super::World;
use crate::sim::disk::Stop;
use crate::sim::plan::{Fault, Host};

impl World<'_> {
    pub(super) fn begin(&mut self, fault: Fault) {
        if self.healed.is_some() {
            return;
        }
        self.counts.faults += 1;
        self.note("FAULT", || format!("{fault}"));
        match fault {
            Fault::Kill(host) => self.stop(host, Stop::Kill),
            Fault::PowerLoss(host) => self.stop(host, Stop::PowerLoss),
            Fault::Cut(from, to) => self.cut[from.index()][to.index()] += 1,
            Fault::DiskFull(host) => {
                self.full[host.index()] += 1;
                self.set_full(host);
            }
            Fault::Stuck(host) => {
                self.stuck[host.index()] += 1;
                self.set_stuck(host);
            }
            Fault::LineDown(line) => self.lines_down[line as usize] += 1,
        }
    }

    pub(super) fn end(&mut self, fault: Fault) {
        self.note("END", || format!("{fault}"));
        let less = |count: &mut u32| *count = count.saturating_sub(1);
        match fault {
            Fault::Kill(host) | Fault::PowerLoss(host) => {
                less(&mut self.down[host.index()]);
                self.start(host);
            }
            Fault::Cut(from, to) => less(&mut self.cut[from.index()][to.index()]),
            Fault::DiskFull(host) => {
                less(&mut self.full[host.index()]);
                self.set_full(host);
            }
            Fault::Stuck(host) => {
                less(&mut self.stuck[host.index()]);
                self.set_stuck(host);
            }
            Fault::LineDown(line) => less(&mut self.lines_down[line as usize]),
        }
    }

    pub(super) fn set_full(&mut self, host: Host) {
        let full = self.full[host.index()] > 0;
        match host {
            Host::Server => self.server.disk.set_full(full),
            Host::Archive(n) => self.archives[usize::from(n)].disk.set_full(full),
            Host::Client(_) => {}
        }
    }

    pub(super) fn set_stuck(&mut self, host: Host) {
        let stuck = self.stuck[host.index()] > 0;
        if let Host::Client(n) = host {
            self.clients[usize::from(n)].app.stuck = stuck;
        }
    }

    /// All faults end; from here on everything must come to rest.
    pub(super) fn heal(&mut self) {
        self.note("HEAL", || "the network is perfect and everyone is up".into());
        self.healed = Some(self.now);
        self.down = [0; Host::MOST];
        self.cut = [[0; Host::MOST]; Host::MOST];
        self.lines_down = [0; 2];
        self.full = [0; Host::MOST];
        self.stuck = [0; Host::MOST];
        self.bursts = [(0, 0); Host::MOST];
        self.server.file.until = self.plan.messages;
        for host in self.hosts.clone() {
            self.set_full(host);
            self.set_stuck(host);
            if let Host::Client(n) = host {
                self.clients[usize::from(n)].joined = true;
            }
            self.start(host);
            self.wake(host);
        }
    }
}
