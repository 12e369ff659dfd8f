"""An object whose learned attributes are its state: written, checked, taken over, and put back when a task fails."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from perdure.errors import CheckpointError, ConfigError
from perdure.learned.declaration import declarations, hashes
from perdure.learned.entry import Sizes

State = dict[str, Any]
KINDS = (Tensor, nn.Module | Mapping, list | tuple, str, int | float)  # of learned attributes that are not declared


class Stateful:
    """Attributes that end in ``_`` are learned, and are the whole state. Those that are declared are checked."""

    def _known_sizes(self) -> Sizes:
        """What names in the declared shapes stand for, before a state is seen."""
        return {}

    def _empty(self) -> None:
        """Makes what is declared, but for modules, as it is before anything is learned."""
        sizes = self._known_sizes()
        for name, declared in declarations(type(self)).items():
            if (empty := declared.initial(sizes)) is not None:
                setattr(self, name, empty)

    def _require_made(self) -> None:
        """Refuses a class that declares what it does not make."""
        for name, declared in declarations(type(self)).items():
            if name not in vars(self):
                where, must_be = f"{type(self).__name__}.setup", f"made there (declared as {declared.what})"
                hint = f"setup must make {name}: write self.{name} = ... there, or take the declaration out"
                raise ConfigError(where, name, must_be, None, hint)

    def state_dict(self) -> State:
        """Everything learned: tensors, module states, and plain values."""
        return {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in self._learned().items()}

    @property
    def fingerprints(self) -> dict[str, str]:
        """The hashes of what else decides what is learned, beside the backbone and the images, by what they are of."""
        return {of: getattr(self, name) for of, name in hashes(type(self)).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Takes over a state written by :meth:`state_dict`; if it is refused, the method is as it was before.

        Raises:
            CheckpointError: if its entries are not this method's, or not as declared.
        """
        self.sizes_in(state)
        before, key = self._snapshot(), "entries"
        try:
            for key, value in state.items():
                mine = getattr(self, key)
                if isinstance(mine, nn.Module):
                    mine.load_state_dict(value)
                else:
                    setattr(self, key, value)
        except BaseException as error:
            self._restore(before)
            if isinstance(error, CheckpointError) or not isinstance(error, Exception):
                raise
            got, hint = f"{error} ".splitlines()[0].rstrip(), "Load it with the backbone it was written with"
            raise CheckpointError("load_state_dict", key, "of this backbone", got, hint) from error
        return self

    def sizes_in(self, state: Mapping[str, Any]) -> Sizes:
        """What the names in the declared shapes stand for in a state, which is checked from end to end.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            CheckpointError: if its entries are not this method's, or not as declared.
        """
        mine, declared = self._learned(), declarations(type(self))
        if mine.keys() != state.keys():
            hint = f"It was written by another method than {type(self).__name__}"
            raise CheckpointError("load_state_dict", "entries", str(sorted(mine)), sorted(state), hint)
        sizes = self._known_sizes()
        for key, thing in declared.items():
            thing.check(key, state[key], mine[key], sizes)
        for key in mine.keys() - declared.keys():
            kind = next((k for k in KINDS if isinstance(mine[key], k)), object)
            if not isinstance(state[key], kind):
                must_be, got = f"of the kind {type(mine[key]).__name__}", type(state[key]).__name__
                raise CheckpointError("load_state_dict", key, must_be, got, "Load what state_dict gave")
        return sizes

    def _lay_out(self) -> None:
        """Rows one after another, as a file brings them back: a product of the same numbers laid out by columns rounds
        differently."""
        for name, value in self._learned().items():
            if isinstance(value, Tensor) and not value.is_contiguous():
                setattr(self, name, value.contiguous())

    def _learned(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k.endswith("_")}

    def _snapshot(self) -> dict[str, Any]:
        learned = self._learned()
        states = {k: copy.deepcopy(v.state_dict()) for k, v in learned.items() if isinstance(v, nn.Module)}
        return {**learned, "states": states}

    def _restore(self, before: dict[str, Any]) -> None:
        states = before.pop("states")
        for key in self._learned().keys() - before.keys():
            delattr(self, key)
        for key, value in before.items():
            setattr(self, key, value)
            if key in states:
                value.load_state_dict(states[key])
