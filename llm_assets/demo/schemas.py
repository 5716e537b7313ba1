"""The twelve small worlds the demo asks questions about: two tables each, a child with a foreign key to its parent.

Identifiers are single lower-case words that the questions use verbatim, so a one-million-parameter model can learn to
copy them; the cost is that the demo says nothing about linking a paraphrase to a column name.
"""

from dataclasses import dataclass

Values = tuple[str, ...]
Bounds = tuple[int, int]

PEOPLE: Values = (
    *("Rosa", "Amir", "Bella", "Chen", "Dara", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Liam"),
    *("Mira", "Nadia", "Oskar", "Priya", "Quinn", "Rafael", "Sofia", "Tariq", "Uma", "Viktor", "Wanda", "Xenia"),
    *("Yusuf", "Zara", "Anton", "Bianca", "Carlos", "Diana", "Emil", "Fatima", "Gustav", "Helena", "Ivan", "Julia"),
)
CITIES: Values = (
    "Oslo",
    "Lima",
    "Cairo",
    "Quito",
    "Porto",
    "Kyoto",
    "Turin",
    "Delhi",
    "Accra",
    "Basel",
    "Perth",
    "Riga",
)
COUNTRIES: Values = ("Norway", "Peru", "Egypt", "Ecuador", "Portugal", "Japan", "Italy", "India", "Ghana", "Latvia")
WORDS: Values = (
    *("Amber", "Beacon", "Cedar", "Delta", "Ember", "Falcon", "Garnet", "Harbor", "Indigo", "Jasper", "Kestrel"),
    *("Lantern", "Meadow", "Nimbus", "Onyx", "Pioneer", "Quartz", "Raven", "Sierra", "Tundra", "Umbra", "Vertex"),
    *("Willow", "Yonder", "Zephyr", "Aurora", "Birch", "Comet", "Drift", "Echo", "Fjord", "Glade", "Horizon"),
)
LEVELS: Values = ("low", "medium", "high", "urgent")


@dataclass(frozen=True)
class Table:
    """One table: its name, the label column that names a row, and the columns a question may be about.

    Attributes:
        name: Plural noun used in SQL and in questions.
        label: Text column, distinct per row.
        labels: Values of the label column.
        texts: Categorical columns and their values.
        numbers: Integer columns and their inclusive bounds; values are distinct within a table.
    """

    name: str
    label: str
    labels: Values
    texts: dict[str, Values]
    numbers: dict[str, Bounds]


@dataclass(frozen=True)
class Domain:
    """A parent table, a child table, and the child's column that points to `parent.id`."""

    name: str
    description: str
    parent: Table
    child: Table
    foreign_key: str


def _domain(name: str, description: str, foreign_key: str, parent: Table, child: Table) -> Domain:
    return Domain(name, description, parent, child, foreign_key)


DOMAINS: tuple[Domain, ...] = (
    _domain(
        *("publishing", "Authors, the books they wrote, and how those sell", "author_id"),
        Table("authors", "name", PEOPLE, {"country": COUNTRIES, "city": CITIES}, {"age": (25, 90), "awards": (0, 40)}),
        Table(
            *("books", "title", WORDS),
            {"genre": ("crime", "poetry", "history", "fantasy"), "language": ("english", "spanish", "hindi")},
            {"pages": (80, 900), "price": (5, 80), "copies": (100, 990)},
        ),
    ),
    _domain(
        *("retail", "Customers of an online shop and the orders they placed", "customer_id"),
        Table(
            "customers", "name", PEOPLE, {"city": CITIES, "tier": ("gold", "silver", "bronze")}, {"points": (0, 900)}
        ),
        Table(
            *("orders", "code", WORDS),
            {"status": ("open", "shipped", "returned", "paid"), "channel": ("web", "store", "phone")},
            {"total": (10, 990), "items": (1, 40), "discount": (0, 60)},
        ),
    ),
    _domain(
        *("healthcare", "Doctors, their patients, and the visits", "doctor_id"),
        Table(
            *("doctors", "name", PEOPLE),
            {"specialty": ("surgery", "cardiology", "oncology", "pediatrics"), "city": CITIES},
            {"experience": (1, 45), "fee": (40, 400)},
        ),
        Table(
            *("patients", "name", PEOPLE),
            {"ward": ("north", "south", "east", "west"), "insurance": ("public", "private", "none")},
            {"age": (1, 95), "weight": (20, 130), "visits": (1, 60)},
        ),
    ),
    _domain(
        *("education", "Schools and the students enrolled in them", "school_id"),
        Table(
            *("schools", "name", WORDS),
            {"city": CITIES, "type": ("public", "private", "charter")},
            {"teachers": (5, 200), "budget": (100, 990)},
        ),
        Table(
            *("students", "name", PEOPLE),
            {"subject": ("math", "physics", "art", "music"), "grade": ("first", "second", "third")},
            {"score": (1, 100), "absences": (0, 50), "age": (6, 60)},
        ),
    ),
    _domain(
        *("logistics", "Warehouses and the shipments that leave them", "warehouse_id"),
        Table(
            "warehouses",
            "name",
            WORDS,
            {"city": CITIES, "country": COUNTRIES},
            {"capacity": (50, 990), "docks": (1, 60)},
        ),
        Table(
            *("shipments", "code", WORDS),
            {"carrier": ("rail", "truck", "ship", "plane"), "priority": LEVELS},
            {"weight": (1, 900), "distance": (5, 990), "cost": (10, 800)},
        ),
    ),
    _domain(
        *("energy", "Power plants and the turbines they run", "plant_id"),
        Table(
            *("plants", "name", WORDS),
            {"country": COUNTRIES, "fuel": ("wind", "solar", "hydro", "gas")},
            {"output": (10, 990), "staff": (5, 300)},
        ),
        Table(
            *("turbines", "model", WORDS),
            {"maker": ("Siemens", "Vestas", "Enercon"), "state": ("running", "stopped", "repair")},
            {"power": (1, 400), "hours": (10, 990), "faults": (0, 70)},
        ),
    ),
    _domain(
        *("sports", "Teams and the players under contract", "team_id"),
        Table(
            "teams",
            "name",
            WORDS,
            {"city": CITIES, "league": ("premier", "national", "junior")},
            {"wins": (0, 60), "fans": (10, 990)},
        ),
        Table(
            *("players", "name", PEOPLE),
            {"position": ("keeper", "defender", "forward"), "country": COUNTRIES},
            {"goals": (0, 90), "salary": (20, 900), "age": (16, 60)},
        ),
    ),
    _domain(
        *("aviation", "Airlines and the flights they operate", "airline_id"),
        Table(
            "airlines",
            "name",
            WORDS,
            {"country": COUNTRIES, "alliance": ("star", "sky", "oneworld")},
            {"fleet": (3, 400), "rating": (1, 100)},
        ),
        Table(
            *("flights", "code", WORDS),
            {"origin": CITIES, "cabin": ("economy", "business", "mixed")},
            {"passengers": (10, 400), "delay": (0, 300), "distance": (100, 990)},
        ),
    ),
    _domain(
        *("finance", "Bank branches and the loans they granted", "branch_id"),
        Table(
            "branches",
            "name",
            WORDS,
            {"city": CITIES, "region": ("north", "south", "east", "west")},
            {"employees": (3, 200), "deposits": (50, 990)},
        ),
        Table(
            *("loans", "borrower", PEOPLE),
            {"purpose": ("house", "car", "study", "farm"), "risk": LEVELS},
            {"amount": (10, 990), "months": (6, 360), "rate": (1, 30)},
        ),
    ),
    _domain(
        *("hospitality", "Hotels and the bookings guests made", "hotel_id"),
        Table(
            "hotels",
            "name",
            WORDS,
            {"city": CITIES, "class": ("budget", "comfort", "luxury")},
            {"rooms": (10, 500), "stars": (1, 40)},
        ),
        Table(
            *("bookings", "guest", PEOPLE),
            {"season": ("spring", "summer", "autumn", "winter"), "status": ("open", "paid", "cancelled")},
            {"nights": (1, 60), "price": (40, 900), "adults": (1, 30)},
        ),
    ),
    _domain(
        *("agriculture", "Farms and the fields they harvest", "farm_id"),
        Table(
            "farms",
            "name",
            WORDS,
            {"country": COUNTRIES, "method": ("organic", "mixed", "industrial")},
            {"workers": (2, 150), "income": (20, 990)},
        ),
        Table(
            *("fields", "name", WORDS),
            {"crop": ("wheat", "maize", "rice", "barley"), "soil": ("clay", "sand", "loam")},
            {"area": (1, 400), "harvest": (10, 990), "slope": (0, 50)},
        ),
    ),
    _domain(
        *("software", "Projects and the bugs reported against them", "project_id"),
        Table(
            "projects",
            "name",
            WORDS,
            {"language": ("python", "rust", "java"), "owner": PEOPLE},
            {"commits": (10, 990), "forks": (0, 300)},
        ),
        Table(
            *("bugs", "reporter", PEOPLE),
            {"severity": LEVELS, "state": ("open", "closed", "blocked")},
            {"votes": (0, 200), "comments": (0, 150), "days": (1, 400)},
        ),
    ),
)
