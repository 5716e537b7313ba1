"""Which version is in use after this: the newest if the gate lets it, one a person asks for, or the same as before.

A refused challenger changes nothing: the version in use goes on. Going back is asked for by number, or by moving the
alias in MLflow by hand; the version left behind is marked, so that the next materialization does not bring it back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_assets.core import CheckResult
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.evidence import ROLLED_BACK_TAG, Evidence, read_evidence, write_evidence
from llm_assets.registry.gate import gate, read_exam
from llm_assets.registry.promote import PREVIOUS_TAG, Promotion, current, promote
from llm_assets.registry.prompts import PromptVersion, prompt_from_json
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import RegisteredVersion, find, load_version


@dataclass(frozen=True)
class Succession:
    """What was decided.

    Attributes:
        verdict: The gate's.
        promotion: Where the alias points now; None when nothing was ever promoted and nothing is now.
        candidate: Version that was considered.
        kind: What happened.
    """

    verdict: CheckResult
    promotion: Promotion | None
    candidate: str
    kind: Literal["promoted", "unchanged", "rolled back", "refused"]


@dataclass(frozen=True)
class Throne:
    """An alias of a registered name, and what decides who gets it.

    Attributes:
        name: Registered name.
        alias: The alias.
        config: Floors and tolerances of the gate.
        store: The registry.
        checks: Blocking checks that have passed for the newest version, for its record.
        origin: Tags of the deciding run, for the record.
    """

    name: str
    alias: str
    config: RegistryConfig
    store: TrackingStore
    checks: Sequence[str] = ()
    origin: Mapping[str, str] | None = None

    def succeed(self, newest: str, requested: str | None = None, recorded: str | None = None) -> Succession:
        """Decide and move the alias accordingly.

        Args:
            newest: Version that was registered last.
            requested: Version a person asked for; it need not be better, only once promoted or able to pass the gate.
            recorded: Version in use as recorded last time; where the alias now points elsewhere, a person moved it.

        Raises:
            VersionUnknown: no such model or version.
        """
        asked = self.asked(requested, recorded)
        holder = current(self.name, self.alias, self.store)
        if asked is None:
            return self._by_gate(newest, holder)
        return self._by_request(asked, recorded if requested is None else holder, newest)

    def asked(self, requested: str | None, recorded: str | None) -> str | None:
        """Version a person asked for, by number or by moving the alias since it was `recorded`; None for neither."""
        if requested:
            return requested
        holder = current(self.name, self.alias, self.store)
        if recorded is None or holder is None or holder == recorded or self._moved_here(holder, recorded):
            return None
        return holder

    def was_promoted(self, version: str) -> bool:
        """Whether a version has a passed gate on record; one that has needs no check of today's to be used again.

        Raises:
            VersionUnknown: no such model or version.
        """
        evidence = read_evidence(find(self.store.client(), self.name, version, self.store.tracking_uri).tags)
        return evidence is not None and evidence.passed

    def put_back(self, recorded: str) -> None:
        """Point the alias to the version in use again, after a person moved it to one that may not be used."""
        promote(self.name, recorded, self.alias, self.store)

    def prompts(self, version: str) -> list[PromptVersion]:
        """Prompt versions that a version was trained with."""
        return [prompt_from_json(prompt) for prompt in self._load(version).metadata["prompts"]]

    def _moved_here(self, holder: str, recorded: str) -> bool:
        """Whether a run of ours moved the alias and died before it could record that; its tags say so."""
        tags = find(self.store.client(), self.name, holder, self.store.tracking_uri).tags
        succeeded = tags.get(PREVIOUS_TAG) == recorded and not tags.get(ROLLED_BACK_TAG)
        return succeeded and read_evidence(tags) is not None

    def _load(self, version: str) -> RegisteredVersion:
        return load_version(self.name, version, self.store.tracking_uri, self.store.separate_registry_uri)

    def _by_gate(self, newest: str, holder: str | None) -> Succession:
        tags = find(self.store.client(), self.name, newest, self.store.tracking_uri).tags
        if newest != holder and tags.get(ROLLED_BACK_TAG):
            verdict = CheckResult(
                False,
                f"Version {newest} was rolled back to version {tags[ROLLED_BACK_TAG]} and is not promoted again by "
                f"itself. Register a better one, or materialize with the run config `version: {newest}`.",
            )
        else:
            verdict = self._gate(newest, holder)
        if not verdict.passed:
            return Succession(verdict, self._kept(holder), newest, "refused")
        if newest != holder or not read_evidence(tags):
            write_evidence(self.store, self.name, newest, self._evidence(verdict, holder, self.checks))
        kind = "unchanged" if newest == holder else "promoted"
        return Succession(verdict, promote(self.name, newest, self.alias, self.store), newest, kind)

    def _by_request(self, wanted: str, left: str | None, newest: str) -> Succession:
        found = find(self.store.client(), self.name, wanted, self.store.tracking_uri)
        wanted, earlier = str(found.version), read_evidence(found.tags)
        if earlier and earlier.passed:
            again = f"Version {wanted} is in use again, as asked for. When it was promoted: {earlier.summary}"
            verdict = CheckResult(True, earlier.summary if earlier.kind == "rollback" else again)
        else:
            verdict = self._gate(wanted, left)
        if not verdict.passed:
            return Succession(verdict, self._kept(left), wanted, "refused")
        client = self.store.client()
        if wanted != left:
            checks = self.checks if wanted == newest else ()  # they were made of the newest version alone
            write_evidence(self.store, self.name, wanted, self._evidence(verdict, left, checks, earlier))
            client.delete_model_version_tag(self.name, wanted, ROLLED_BACK_TAG)
            if left:
                client.set_model_version_tag(self.name, left, ROLLED_BACK_TAG, wanted)
        promotion = promote(self.name, wanted, self.alias, self.store, left)
        return Succession(verdict, promotion, wanted, "unchanged" if wanted == left else "rolled back")

    def _gate(self, candidate: str, holder: str | None) -> CheckResult:
        exams = [read_exam(self._load(version)) for version in (candidate, holder) if version]
        return gate(exams[0], exams[1] if holder else None, self.config)

    def _evidence(
        self, verdict: CheckResult, compared_with: str | None, checks: Sequence[str], earlier: Evidence | None = None
    ) -> Evidence:
        kind = "rollback" if earlier else "gate"
        return Evidence.of(verdict, compared_with, earlier.checks if earlier else checks, self.origin or {}, kind)

    def _kept(self, holder: str | None) -> Promotion | None:
        return promote(self.name, holder, self.alias, self.store) if holder else None
