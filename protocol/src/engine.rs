//! Engines: what runs the program of a virtual end. One list says what each can do ([`Engine::traits`]); how it does it is in
//! `vmm/src/engine`. Whoever adds one writes its line here, its line there and its file there.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapters::{Adapter, PcnetSwitches};

/// What runs the program of a virtual end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// The payload program is a thread of the VMM's process: on the same adapter model and port as a guest, without KVM.
    SameStack,
    /// A KVM guest that runs the payload program.
    Payload,
}

/// What an engine is, and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Its name.
    pub name: &'static str,
    /// What stands at an end that it runs, as metric labels and reports name it.
    pub end: &'static str,
    /// The field of an arm that it is written in.
    pub field: &'static str,
    /// What stands at such an end, for people.
    pub description: &'static str,
    /// Whether its program is a KVM guest: it needs KVM, and it has exits.
    pub guest: bool,
}

impl Engine {
    /// What it is.
    pub const fn traits(self) -> Traits {
        match self {
            Self::SameStack => Traits {
                name: "same-stack",
                end: "same-stack",
                field: "sameStack",
                description: "same stack as a host process",
                guest: false,
            },
            Self::Payload => Traits {
                name: "payload",
                end: "guest",
                field: "guest",
                description: "KVM guest",
                guest: true,
            },
        }
    }

    /// Labels of the ends that engines run, each once.
    pub const ENDS: [&'static str; 2] = [Self::SameStack.traits().end, Self::Payload.traits().end];

    /// The switch of `adapter` that is on and that it can do nothing with, and why.
    pub const fn useless_switch(self, adapter: &Adapter) -> Option<UselessSwitch> {
        match adapter {
            Adapter::Pcnet(PcnetSwitches { io_in_kernel: true, .. }) if !self.traits().guest => {
                Some(UselessSwitch {
                    engine: self,
                    switch: "ioInKernel",
                    why: "no exits that the kernel could spare",
                })
            }
            Adapter::Pcnet(_) | Adapter::VirtioNet(_) => None,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.traits().name)
    }
}

/// A switch of an adapter that an engine can do nothing with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {engine} end has {why}: leave it out")]
pub struct UselessSwitch {
    /// The engine.
    pub engine: Engine,
    /// The switch, as a campaign writes it.
    pub switch: &'static str,
    /// What the engine has not.
    why: &'static str,
}

/// What a guest runs, as a campaign writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum GuestOs {
    /// The built-in payload program.
    Payload,
}

impl GuestOs {
    /// The engine that runs it.
    pub const fn engine(self) -> Engine {
        match self {
            Self::Payload => Engine::Payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_guests_have_exits_that_the_kernel_could_spare() {
        let in_kernel = Adapter::Pcnet(PcnetSwitches { io_in_kernel: true, ..PcnetSwitches::OFF });
        for (engine, taken) in [(Engine::SameStack, false), (Engine::Payload, true)] {
            assert_eq!(engine.useless_switch(&in_kernel).is_none(), taken, "{engine}");
            assert_eq!(engine.useless_switch(&Adapter::Pcnet(PcnetSwitches::OFF)), None);
            assert!(Engine::ENDS.contains(&engine.traits().end));
        }
    }
}
