//! Rules for gates, made of their forms: one for each figure. That exactly one condition is written, and what a quantity is, is made of
//! the schema; which arms and workloads a gate may name is in `table`.

use toll_protocol::campaign::schema::gate::{FORMS, Form};
use toll_protocol::relation::Relation;
use toll_protocol::units::Quantity;

use super::made::{Rule, all_of, matches, percentage};

pub(super) fn rules() -> Vec<Rule> {
    FORMS.iter().flat_map(|form| form.relations.iter().filter_map(|relation| limit(form, relation))).collect()
}

/// What a limit must be, if it may be less than its type says.
fn limit(form: &Form, relation: &Relation) -> Option<Rule> {
    let at = format!("spec.gates[].{}.{}", form.field, relation.id);
    if let Some(widest) = relation.widest {
        let most = widest * 100.0;
        let message = format!("is out of range: write more than 0% and at most {most}%");
        let range = all_of(percentage(), &format!("n > 0.0 && n <= {most:?}"));
        let rule = format!("!{} || {range}", matches(Quantity::Percent));
        let expression = Some(format!("self + ' {message}'"));
        return Some(Rule { at, rule, message, expression, field: None });
    }
    form.quantity.is_none().then(|| {
        let message = "is out of range: write 0 or more".into();
        Rule { at, rule: "self >= 0.0".into(), message, expression: None, field: None }
    })
}
