//! How each part starts, takes its turns and ends.

use std::net::SocketAddrV4;

use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::lines::Line;
use seqcast_proto::responder::RepairConfig;
use seqcast_proto::seal::{CLOCK_SKEW, KEY_BYTES, Key, KeyRing, Seal};
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::server::{Blocked, RateLimit, Server, ServerConfig};
use seqcast_proto::time::{MILLIS, Nanos, SECONDS};

use super::parts::{ServerHost, out};
use super::{BUDGET, GROUP, STREAM, TURN, WALL, World, addr, addr_on, group};
use crate::sim::disk::Stop;
use crate::sim::oracle::Oracle;
use crate::sim::plan::{Host, Listen, Medium, Plan};

impl World<'_> {
    pub(super) fn wake(&mut self, host: Host) {
        let now = self.now;
        match host {
            Host::Server => self.server.turn = now,
            Host::Archive(n) => self.archives[usize::from(n)].turn = now,
            Host::Client(n) => self.clients[usize::from(n)].turn = now,
        }
    }

    pub(super) fn is_up(&self, host: Host) -> bool {
        match host {
            Host::Server => self.server.machine.is_some(),
            Host::Archive(n) => self.archives[usize::from(n)].machine.is_some(),
            Host::Client(n) => self.clients[usize::from(n)].machine.is_some(),
        }
    }

    pub(super) fn stop(&mut self, host: Host, how: Stop) {
        self.down[host.index()] += 1;
        self.power_lost |= how == Stop::PowerLoss;
        match host {
            Host::Server => {
                self.server.machine = None;
                self.server.turn = Nanos::MAX;
                self.take_server_deeds();
                self.server.disk.stop(how, &mut self.rng);
                self.server.lost_power |= how == Stop::PowerLoss;
            }
            Host::Archive(n) => {
                let archive = &mut self.archives[usize::from(n)];
                archive.machine = None;
                archive.turn = Nanos::MAX;
                let held = archive.disk.held();
                archive.disk.stop(how, &mut self.rng);
                // What went with the power it fetches again.
                self.counts.missed += held.saturating_sub(archive.disk.held());
                // What the last run did not sync, the next one does.
                archive.stored = u64::MAX;
                archive.stopped = archive.stopped.max(Some(how));
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                client.machine = None;
                client.turn = Nanos::MAX;
                client.app.clear();
                client.view.restart();
                let left = client.frames.lent();
                if left > 0 {
                    let text = format!("client{n} has ended and not given back {left} frames");
                    self.judge(Err((Oracle::Frames, text)));
                }
            }
        }
    }

    pub(super) fn start(&mut self, host: Host) {
        if self.is_up(host) || self.down[host.index()] > 0 {
            return;
        }
        let now = self.now;
        let listen = self.listen(host);
        let lines = self.plan.lines.filter(|_| listen == Listen::Both).map(|l| l.config);
        if self.plan.keyed {
            let ring = KeyRing::new(vec![Key::new(1, &[7; KEY_BYTES])]).expect("one key");
            self.seals[host.index()] = Some(Seal::new(ring, CLOCK_SKEW, self.wall().wall));
        }
        match host {
            Host::Server => self.start_server(),
            Host::Archive(n) => {
                let archive = &mut self.archives[usize::from(n)];
                if !archive.disk.is_open() {
                    archive.turn = now + 10 * MILLIS;
                    return;
                }
                if let Some(how) = archive.stopped.take() {
                    self.check_promises(usize::from(n), how);
                }
                let archive = &mut self.archives[usize::from(n)];
                let first = listen.first();
                let config = ArchiverConfig {
                    synced: self.plan.synced,
                    repair: repair(self.plan, group(first)),
                    local_b: lines.map(|_| addr_on(host, Line::B)),
                    lines,
                    line: first,
                    ..ArchiverConfig::new(STREAM, GROUP, addr_on(host, first), 500 + u32::from(n))
                };
                archive.machine = Some(Archiver::new(config, now, &mut archive.disk));
                archive.turn = now;
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                if !client.joined {
                    return;
                }
                client.runs += 1;
                let mut config = ClientConfig::new(STREAM, 10_000 + 100 * u32::from(n) + client.runs);
                config.start = match client.view.saved {
                    Some((session, seq)) => Start::After(session, seq),
                    None if client.plan.whole_session => Start::Session,
                    None => Start::Now,
                };
                // What it was away for it catches up with.
                self.counts.missed += match config.start {
                    Start::After(session, seq) => self.truth.behind(session, seq),
                    Start::Session => self.truth.messages(),
                    Start::Now => 0,
                };
                config.order = client.plan.order;
                config.window = client.plan.window;
                config.hold_frames = client.plan.hold;
                config.seed = self.rng.next_u64();
                config.lines = lines;
                config.line = listen.first();
                let asked = group(listen.first());
                if self.plan.ask_group {
                    config.ask_group = Some(asked);
                    config.ask_group_b = self.plan.lines.map(|_| group(Line::B));
                    config.gaps.backoff = MILLIS;
                }
                config.seek_group = self.plan.seek_group.then_some(asked);
                client.machine = Some(Client::new(config, now));
                client.turn = now;
                if client.runs > 1 {
                    self.counts.restarts += 1;
                }
            }
        }
        self.note("START", || format!("{host}"));
    }

    pub(super) fn start_server(&mut self) {
        let plan = self.plan;
        let server = &mut self.server;
        if !server.disk.is_open() {
            server.turn = self.now + 10 * MILLIS;
            return;
        }
        let inherited = server.disk.inherited();
        if std::mem::take(&mut server.lost_power) {
            for known in &inherited {
                self.truth.withdraw(known.session, known.end.last.next());
                let released = self.released.get(&known.session).map_or(Seq::FIRST, |s| s.next());
                for seq in (released.0..=known.end.last.0).map(Seq) {
                    if !server.disk.holds(known.session, seq) {
                        self.torn.insert((known.session, seq));
                    }
                }
            }
        }
        let newest = inherited.last().map_or(0, |i| i.session.0 + 1);
        let session = Session(newest.max(((WALL + self.now) / SECONDS) as u32));
        server.runs += 1;
        let mut config = ServerConfig::new(STREAM, GROUP, addr(Host::Server), 1000 + server.runs);
        config.archives = plan.required;
        config.range_end = plan.range_end.map_or(Seq::LAST, Seq);
        config.rate = RateLimit {
            bytes_per_second: plan.rate,
            frames_per_second: 0,
            burst_bytes: 20_000,
        };
        config.unacknowledged_max = plan.unacknowledged_max;
        config.repair = repair(plan, GROUP);
        config.local_b = plan.lines.map(|_| addr_on(Host::Server, Line::B));
        server.file.next = server.disk.taken();
        server.file.run = server.runs;
        server.closed = false;
        let opened = Server::open(config, session, &inherited, self.now, &mut server.disk);
        match opened {
            Ok(machine) => {
                server.machine = Some(machine);
                server.turn = self.now;
                self.counts.restarts += u64::from(self.server.runs > 1);
                self.note("server", || {
                    format!("opens session {session} behind {}", newest.max(1) - 1)
                });
            }
            Err(_) => {
                // Its disk refuses: whoever runs it tries again.
                server.turn = self.now + 10 * MILLIS;
            }
        }
        self.take_server_deeds();
    }

    pub(super) fn server_turn(&mut self) {
        if self.server.machine.is_none() {
            self.server.turn = Nanos::MAX;
            self.start(Host::Server);
            return;
        }
        let now = self.wall();
        let mut sent = std::mem::take(&mut self.outbox);
        let (plan, healed) = (self.plan, self.healed.is_some());
        let ServerHost {
            machine,
            disk,
            file,
            turn,
            closed,
            ..
        } = &mut self.server;
        let Some(machine) = machine else { return };
        let mut out = out!(self, Host::Server, &mut sent);
        let before = machine.unacknowledged();
        let (taken, blocked) = machine.publish(now, BUDGET, file, disk, &mut out);
        let limit = plan.unacknowledged_max;
        let overrun = limit > 0 && plan.required > 0 && before >= limit && taken > 0;
        let retry = match blocked {
            Some(Blocked::Rate(opens)) => opens,
            Some(Blocked::Unacknowledged | Blocked::Full) => now.mono + MILLIS,
            Some(Blocked::Closed | Blocked::Superseded(_)) => Nanos::MAX,
            Some(Blocked::NoBuffer | Blocked::StoreFailed) => now.mono,
            None if file.next < file.until => now.mono,
            None => Nanos::MAX,
        };
        if healed && plan.close && !*closed && file.next == plan.messages && !machine.is_stuck() {
            *closed = machine.close(now, disk).is_ok();
        }
        let due = machine.poll(now, BUDGET, disk, &mut out);
        *turn = due.min(retry).max(now.mono + TURN);
        if overrun {
            let text =
                format!("the server takes {taken} messages while {before} of at most {limit} are not acknowledged");
            self.judge(Err((Oracle::Bounds, text)));
        }
        self.take_server_deeds();
        self.dispatch(sent);
        if blocked == Some(Blocked::StoreFailed) {
            self.note("server", || "its store has failed: it ends".into());
            self.stop(Host::Server, Stop::Kill);
            self.down[Host::Server.index()] -= 1;
            self.server.turn = self.now + 10 * MILLIS;
        }
    }

    pub(super) fn archive_turn(&mut self, n: usize) {
        let now = self.wall();
        let host = Host::Archive(n as u16);
        let mut sent = std::mem::take(&mut self.outbox);
        let archive = &mut self.archives[n];
        let Some(machine) = &mut archive.machine else {
            archive.turn = Nanos::MAX;
            self.start(host);
            return;
        };
        let mut sync_due = Nanos::MAX;
        if self.plan.synced || self.plan.medium == Medium::Log {
            let stored = machine.stats().stored;
            if stored != archive.stored && now.mono >= archive.synced_at + 3 * MILLIS {
                archive.synced_at = now.mono;
                if archive.disk.sync() {
                    archive.stored = stored;
                } else {
                    sync_due = now.mono + 10 * MILLIS;
                }
            } else if stored != archive.stored {
                sync_due = archive.synced_at + 3 * MILLIS;
            }
        }
        let mut out = out!(self, host, &mut sent);
        let due = machine.poll(now, BUDGET, &mut archive.disk, &mut out);
        archive.turn = due.min(sync_due).max(now.mono + TURN);
        self.take_archive_deeds(n);
        self.dispatch(sent);
    }

    pub(super) fn client_turn(&mut self, n: usize) {
        let now = self.wall();
        let mut sent = std::mem::take(&mut self.outbox);
        let client = &mut self.clients[n];
        let Some(machine) = &mut client.machine else {
            client.turn = Nanos::MAX;
            return;
        };
        let mut out = out!(self, Host::Client(n as u16), &mut sent);
        let due = machine.poll(now, &mut client.app, &mut out);
        client.turn = due.max(now.mono + TURN);
        let held = machine.held();
        if held > client.plan.hold as usize {
            let text = format!("client{n} holds {held} frames of {}", client.plan.hold);
            self.judge(Err((Oracle::Bounds, text)));
        }
        self.look_at(n);
        self.dispatch(sent);
    }
}

fn repair(plan: &Plan, group: SocketAddrV4) -> RepairConfig {
    RepairConfig {
        cast: plan.cast,
        bytes_per_second: plan.repair_rate,
        ..RepairConfig::new(group)
    }
}
