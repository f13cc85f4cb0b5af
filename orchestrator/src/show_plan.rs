//! `toll plan FILE`: what would be run, and how long it takes.

use comfy_table::{CellAlignment, Table, presets};
use toll_protocol::campaign::{Campaign, Lab};

use crate::plan::{self, Plan, PlannedHost};
use crate::progress::left;

/// The plan of `campaign` on the lab that it names, for people.
pub fn show(campaign: &Campaign, lab: &Lab) -> String {
    let host = |n: u32| PlannedHost {
        name: format!("host-{n}"),
        virtual_address: None,
        mtu: lab.mtu,
        rate: lab.rate,
    };
    let hosts: Vec<PlannedHost> = (1..=lab.count).map(host).collect();
    let seed = campaign.seed.unwrap_or(0);
    let plan = Plan::new(campaign, &hosts, seed, || plan::draw(&mut rand::rng()));
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["pair", "workload", "arm", "peer", "direction", "trials", "each"]);
    for column in table.column_iter_mut().skip(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for cell in &plan.cells {
        let key = &cell.key;
        let each = cell.a.job.longest();
        table.add_row([
            format!("{} {}", key.pair.a, key.pair.b),
            key.workload.clone(),
            key.arm.clone(),
            key.peer.to_string(),
            key.direction.to_string(),
            campaign.blocks.to_string(),
            each.to_string(),
        ]);
    }
    let seed = campaign.seed.map_or_else(|| "drawn at the start".to_owned(), |seed| seed.to_string());
    format!(
        "{table}\n{} cells, {} trials in {} blocks; order by seed: {seed}; about {}\n",
        plan.cells.len(),
        plan.trials.len(),
        campaign.blocks,
        left(plan.estimate())
    )
}
