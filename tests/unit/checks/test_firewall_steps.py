"""Rules that lead back to themselves, or to many others, hold nobody up and prove nothing."""

from __future__ import annotations

import time

import pytest
from firewall_samples import POLICY, observed
from hypothesis import given, settings

from pytest_osgates.checks.firewall import judge
from pytest_osgates.checks.firewall.rules import MOST_STEPS, Branch, Chain, Match, Rule, Ruleset, steps
from tests.unit.checks.test_firewall_rules import _RULES


def chain(name: str, *targets: str, hook: str = "", action: str = "jump", times: int = 1) -> Chain:
    rules = tuple(Rule(branches=(Branch(action=action, target=target),)) for target in targets) * times
    return Chain(family="inet", table="t", name=name, hook=hook, policy="drop" if hook else "", rules=rules)


def ruleset(*chains: Chain) -> Ruleset:
    return Ruleset(source="nft", chains=(chain("input", "a", hook="input"), *chains))


def test_steps_are_rules_with_those_behind_jumps_and_long_lists() -> None:
    assert steps(Ruleset(source="nft")) == 0
    assert steps(ruleset(chain("a", "nowhere", "nowhere"))) == 3
    assert steps(ruleset(chain("a", "b", "b"), chain("b", "nowhere"))) == 5
    # Nobody gets there.
    assert steps(Ruleset(source="nft", chains=(chain("a", "b"),))) == 0
    listed = Rule(matches=(Match(key="ip saddr", values=("10.0.0.1",) * 1600),), branches=(Branch(action="drop"),))
    long = Chain(family="inet", table="t", name="input", hook="input", rules=(listed,))
    assert steps(Ruleset(source="nft", chains=(long,))) == 101


@pytest.mark.parametrize("action", ["jump", "goto"])
def test_chains_that_jump_at_each_other_are_not_followed(action: str) -> None:
    loops = ruleset(chain("a", "b", action=action, times=4), chain("b", "a", action=action, times=4))
    assert steps(loops) > MOST_STEPS
    begun = time.monotonic()
    for seen in (observed(ruleset=loops), observed(again=loops)):
        found = {finding.rule: finding for finding in judge(seen, POLICY)}
        assert "may take" in found["ruleset-not-read"].seen
        assert found["ruleset-not-read"].severity == "unproven"
    # Followed, it would take hours.
    assert time.monotonic() - begun < 30


@settings(max_examples=15, deadline=None)
@given(_RULES, _RULES, _RULES)
def test_any_rules_are_judged(first: tuple[Rule, ...], second: tuple[Rule, ...], third: tuple[Rule, ...]) -> None:
    chains = (
        Chain(family="inet", table="t", name="input", hook="input", policy="drop", rules=first),
        Chain(family="inet", table="t", name="a", rules=second),
        Chain(family="inet", table="t", name="b", rules=third),
    )
    assert judge(observed(ruleset=Ruleset(source="nft", chains=chains)), POLICY) is not None
