"""`shop` as the demonstration shows it: what a customer has just bought is left out of the list."""

from dataclasses import replace

from almanac.pipeline import Ranking
from pipelines.shop import shop as _shop

_ranking = Ranking(
    item="item_id",
    features="shop_items_v1",
    leave_out=("basket_items",),
    available="available",
    attributes=("price",),
)
shop = replace(_shop, ranking=_ranking)
