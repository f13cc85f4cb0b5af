//! The configuration of an end, checked once. Nothing after this re-checks it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use toll_protocol::child::EndpointConfig;
use toll_protocol::traffic::dscp::Dscp;
use toll_protocol::traffic::request_response::Background;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{NativeProgram, Open, TrialId};
use toll_protocol::units::{Bytes, Span};

/// The longest send or receive call.
pub const MAX_WRITE_SIZE: Bytes = Bytes(16 << 20);
/// iperf3's own limit, MAX_BLOCKSIZE in its iperf.h.
pub const MAX_IPERF3_WRITE_SIZE: Bytes = Bytes(1 << 20);
/// The longest measured interval: its samples, one every 100 ms, must fit one message to the agent.
pub const MAX_DURATION: Span = Span::from_millis(3_600_000);
/// The longest deadline.
pub const MAX_DEADLINE: Span = Span::from_millis(2 * 3_600_000);
/// Limits of TCP's segments that the kernel takes: TCP_MIN_MSS and MAX_TCP_WINDOW of its net/tcp.h.
const SEGMENTS: std::ops::RangeInclusive<u16> = 88..=32_767;
/// The shortest reporting interval that iperf3 has (MIN_INTERVAL in its iperf.h).
pub const IPERF3_STEP: Span = Span::from_millis(100);

/// Why a configuration can't be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The write size is 0 or too large.
    #[error("a write size of {size} was asked for: 1B to {limit} are possible with {program}")]
    WriteSize {
        /// What was asked.
        size: Bytes,
        /// The most there is.
        limit: Bytes,
        /// `toll-endpoint` or `iperf3`.
        program: &'static str,
    },
    /// The traffic is none that the program has.
    #[error("the traffic can't be run: {0}")]
    Traffic(String),
    /// The interval is empty or too long.
    #[error(
        "a measured interval of {duration} was asked for: it must be over 0ns and at most {MAX_DURATION}"
    )]
    Duration {
        /// What was asked.
        duration: Span,
    },
    /// The deadline comes before the end of the job, or too late.
    #[error(
        "the deadline of {deadline} must be longer than warm-up ({warm_up}) and interval ({duration}) together, \
         and at most {MAX_DEADLINE}"
    )]
    Deadline {
        /// What was asked.
        deadline: Span,
        /// The job's warm-up.
        warm_up: Span,
        /// The job's interval.
        duration: Span,
    },
    /// iperf3 reports in steps and can cut its report nowhere else.
    #[error(
        "iperf3 measures in steps of {IPERF3_STEP}: warm-up ({warm_up}) and interval ({duration}) must be multiples"
    )]
    Iperf3Step {
        /// The job's warm-up.
        warm_up: Span,
        /// The job's interval.
        duration: Span,
    },
    /// The datagrams are none that there can be.
    #[error("datagrams can't be sent so: {why}")]
    Datagram {
        /// Why.
        why: &'static str,
    },
    /// iperf3 was asked for, and is run for streams alone.
    #[error("iperf3 can't be run for `{traffic}`")]
    Iperf3Traffic {
        /// The kind of traffic.
        traffic: &'static str,
    },
    /// The limit of TCP's segments is none that the kernel takes.
    #[error("segments of {segment} bytes were asked for: {} to {} are possible", SEGMENTS.start(), SEGMENTS.end())]
    Segment {
        /// What was asked.
        segment: u16,
    },
    /// The address is none that a socket can be bound to and be found at.
    #[error("{address} is not the address of a host")]
    Address {
        /// What was asked.
        address: Ipv4Addr,
    },
    /// The CPU is not one that this process may use.
    #[error("CPU {cpu} was asked for and is not among those that this process may use")]
    Cpu {
        /// What was asked.
        cpu: u32,
    },
}

/// What the sockets of an end are to be; what is nothing is the system's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Largest TCP segment in bytes, if it is to be smaller than what the interface carries.
    pub segment: Option<u32>,
    /// TCP congestion control by name.
    pub congestion_control: Option<String>,
    /// Code point of differentiated services.
    pub dscp: Option<Dscp>,
    /// Send and receive buffer in bytes.
    pub buffer: Option<usize>,
    /// Whether sends are made without a copy.
    pub zero_copy: bool,
}

impl SocketOptions {
    /// Those of a job whose path carries segments of so many bytes.
    fn of(traffic: &Traffic, segment: Option<u16>) -> Self {
        match traffic {
            Traffic::Stream(stream) => Self {
                segment: segment.into_iter().chain(stream.max_segment_size).min().map(u32::from),
                congestion_control: stream.congestion_control.clone(),
                dscp: stream.dscp,
                buffer: stream.socket_buffer.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX)),
                zero_copy: stream.zero_copy,
            },
            Traffic::Datagram(_) => Self::default(),
            Traffic::RequestResponse(_) => Self { segment: segment.map(u32::from), ..Self::default() },
        }
    }
}

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndConfig {
    /// The trial.
    pub trial: TrialId,
    /// Who produces the traffic.
    pub program: NativeProgram,
    /// Where a listening end listens and from where a connecting end connects, with port 0: the kernel chooses.
    pub bind: SocketAddrV4,
    /// The interface by which alone it sends and receives.
    pub interface: OsString,
    /// What its sockets are to be.
    pub sockets: SocketOptions,
    /// Its part in the traffic.
    pub job: Job,
    /// CPU to pin the traffic to.
    pub cpu: Option<usize>,
    /// From `Start` to the end of the job at most.
    pub deadline: Duration,
}

impl EndConfig {
    /// The same for a stream that runs beside requests and responses.
    pub fn of_background(&self, background: &Background) -> Self {
        let traffic = Traffic::Stream(background.stream.clone());
        let direction = match self.job.open {
            Open::Connect => background.direction,
            Open::Listen => background.direction.opposite(),
        };
        let segment = self.sockets.segment.and_then(|segment| u16::try_from(segment).ok());
        Self {
            sockets: SocketOptions::of(&traffic, segment),
            job: Job { direction, traffic, ..self.job.clone() },
            ..self.clone()
        }
    }
}

impl TryFrom<EndpointConfig> for EndConfig {
    type Error = ConfigError;

    fn try_from(config: EndpointConfig) -> Result<Self, ConfigError> {
        let EndpointConfig { trial, program, address, interface, segment, job, cpu, deadline } = config;
        let (limit, name) = match program {
            NativeProgram::Endpoint => (MAX_WRITE_SIZE, "toll-endpoint"),
            NativeProgram::Iperf3 => (MAX_IPERF3_WRITE_SIZE, "iperf3"),
        };
        match &job.traffic {
            Traffic::Stream(stream) => {
                let size = stream.write_size;
                if size.0 == 0 || size > limit {
                    return Err(ConfigError::WriteSize { size, limit, program: name });
                }
            }
            traffic @ Traffic::Datagram(datagram) => {
                if let Some(why) = datagram.unfit() {
                    return Err(ConfigError::Datagram { why });
                }
                if program == NativeProgram::Iperf3 {
                    return Err(ConfigError::Iperf3Traffic { traffic: traffic.field() });
                }
            }
            traffic @ Traffic::RequestResponse(parameters) => {
                if let Some(fault) = parameters.fault() {
                    return Err(ConfigError::Traffic(fault));
                }
                if program == NativeProgram::Iperf3 {
                    return Err(ConfigError::Iperf3Traffic { traffic: traffic.field() });
                }
            }
        }
        let Timing { warm_up, duration } = job.timing;
        if duration.0 == 0 || duration > MAX_DURATION {
            return Err(ConfigError::Duration { duration });
        }
        let job_length = warm_up.0.checked_add(duration.0);
        if deadline > MAX_DEADLINE || job_length.is_none_or(|length| deadline.0 <= length) {
            return Err(ConfigError::Deadline { deadline, warm_up, duration });
        }
        let stepped = |span: Span| span.0.is_multiple_of(IPERF3_STEP.0);
        if program == NativeProgram::Iperf3 && !(stepped(warm_up) && stepped(duration)) {
            return Err(ConfigError::Iperf3Step { warm_up, duration });
        }
        let address = address.address;
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            return Err(ConfigError::Address { address });
        }
        if let Some(segment) = segment.filter(|segment| !SEGMENTS.contains(segment)) {
            return Err(ConfigError::Segment { segment });
        }
        let cpu = cpu.map(|cpu| allowed(cpu).ok_or(ConfigError::Cpu { cpu })).transpose()?;
        Ok(Self {
            trial,
            program,
            bind: SocketAddrV4::new(address, 0),
            interface: interface.into(),
            sockets: SocketOptions::of(&job.traffic, segment),
            job,
            cpu,
            deadline: deadline.duration(),
        })
    }
}

/// `cpu` as an index, if this process may run there.
fn allowed(cpu: u32) -> Option<usize> {
    let cpu = usize::try_from(cpu).ok()?;
    let set = sched_getaffinity(Pid::from_raw(0)).ok()?;
    // A number beyond the set's size is an error of is_set.
    set.is_set(cpu).unwrap_or(false).then_some(cpu)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toll_protocol::traffic::stream::Stream;
    use toll_protocol::trial::Direction;
    use toll_protocol::units::InterfaceAddress;

    use super::*;

    fn config() -> EndpointConfig {
        EndpointConfig {
            trial: TrialId::new(1),
            program: NativeProgram::Endpoint,
            address: InterfaceAddress { address: Ipv4Addr::LOCALHOST, prefix: 8 },
            interface: "lo".to_owned(),
            segment: None,
            job: Job {
                open: Open::Connect,
                direction: Direction::Send,
                timing: Timing { warm_up: Span::from_millis(500), duration: Span::from_millis(2_000) },
                traffic: Traffic::Stream(Stream { write_size: Bytes(65_536), ..Stream::default() }),
            },
            cpu: None,
            deadline: Span::from_millis(10_000),
        }
    }

    fn writes(size: u64) -> Traffic {
        Traffic::Stream(Stream { write_size: Bytes(size), ..Stream::default() })
    }

    fn refused(change: impl FnOnce(&mut EndpointConfig)) -> ConfigError {
        let mut config = config();
        change(&mut config);
        EndConfig::try_from(config).expect_err("must be refused")
    }

    #[test]
    fn a_valid_configuration_is_taken_as_it_is() {
        let valid = EndConfig::try_from(config()).expect("valid");
        assert_eq!(valid.job, config().job);
        assert_eq!(valid.bind, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    }

    #[test]
    fn each_limit_is_held_and_named() {
        assert!(matches!(refused(|c| c.job.traffic = writes(0)), ConfigError::WriteSize { .. }));
        let large = refused(|c| c.job.traffic = writes((16 << 20) + 1));
        assert!(large.to_string().contains("1B to 16MiB"), "{large}");
        let iperf3 = |c: &mut EndpointConfig| c.program = NativeProgram::Iperf3;
        let large = refused(|c| {
            iperf3(c);
            c.job.traffic = writes(2 << 20);
        });
        assert!(large.to_string().contains("1B to 1MiB are possible with iperf3"), "{large}");
        assert!(matches!(refused(|c| c.job.timing.duration = Span(0)), ConfigError::Duration { .. }));
        assert!(matches!(refused(|c| c.job.timing.duration = Span(u64::MAX)), ConfigError::Duration { .. }));
        assert!(matches!(refused(|c| c.job.timing.warm_up = Span(u64::MAX)), ConfigError::Deadline { .. }));
        assert!(matches!(refused(|c| c.deadline = Span::from_millis(2_500)), ConfigError::Deadline { .. }));
        assert!(matches!(refused(|c| c.deadline = Span(u64::MAX)), ConfigError::Deadline { .. }));
        let step = refused(|c| {
            iperf3(c);
            c.job.timing.warm_up = Span::from_millis(150);
        });
        assert!(matches!(step, ConfigError::Iperf3Step { .. }));
        assert!(matches!(refused(|c| c.cpu = Some(u32::MAX)), ConfigError::Cpu { .. }));
        assert!(matches!(refused(|c| c.segment = Some(87)), ConfigError::Segment { segment: 87 }));
        let nowhere = refused(|c| c.address.address = Ipv4Addr::UNSPECIFIED);
        assert!(matches!(nowhere, ConfigError::Address { .. }));
    }

    proptest! {
        #[test]
        fn no_configuration_panics(size: u64, warm_up: u64, duration: u64, deadline: u64, cpu: Option<u32>) {
            let mut config = config();
            config.job.traffic = writes(size);
            config.job.timing = Timing { warm_up: Span(warm_up), duration: Span(duration) };
            config.deadline = Span(deadline);
            config.cpu = cpu;
            let _ = EndConfig::try_from(config);
        }
    }
}
