"""Which part of the work one of several equal processes does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Process number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def rows(self, total: int) -> range:
        """Consecutive rows of `total`, as many as the others have, give or take one; together they are all rows."""
        return range(total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def every(self, total: int) -> range:
        """Every `world`-th of `total`, from `rank` on: an even mixture where neighbours resemble each other."""
        return range(self.rank, total, self.world)


ALL = Share()
