"""The words that the facts are made of: names, places, answers and sentence templates."""

from types import MappingProxyType

FIRST_NAMES = tuple(
    "Anna Bilal Chloe Daniel Elena Farid Grace Hiro Ingrid Jamal "
    "Kavya Liam Mei Nadia Omar Priya Quentin Rosa Samuel Tariq "
    "Uma Victor Wanjiru Xavier Yuki Zara Amina Bruno Carmen Dmitri "
    "Esther Felix Gita Hassan Irene Jonas Kofi Leila Mateo Noor "
    "Astrid Babak Celia Diego Emeka Fatima Goran Hana Isak Jun "
    "Klara Luis Maya Nils Olga Pavel Ravi Sofia Tomas Vera".split()
)

LAST_NAMES = tuple(
    "Berg Okafor Tanaka Silva Novak Haddad Larsen Moreau Patel Kimani "
    "Rossi Schmidt Nguyen Garcia Kowalski Ito Mensah Petrov Lindgren Costa "
    "Ahmed Fischer Dubois Murphy Castillo Park Sharma Virtanen Horvat Demir "
    "Papadakis Chen Abebe Jansen Ortega Weiss Rahman Bianchi Sato Quispe "
    "Andersen Banerjee Cohen Dlamini Eriksen Flores Gupta Hughes Ivanov Jovanovic "
    "Kaya Lopez Molina Nakamura Owusu Popescu Reyes Singh Toure Zhou".split()
)

CITIES = MappingProxyType(
    {
        "Norway": ("Oslo", "Bergen"),
        "France": ("Paris", "Lyon", "Marseille"),
        "Italy": ("Rome", "Milan", "Naples"),
        "Spain": ("Madrid", "Seville"),
        "Germany": ("Berlin", "Hamburg", "Munich"),
        "Austria": ("Vienna", "Graz"),
        "Portugal": ("Lisbon", "Porto"),
        "Brazil": ("Recife", "Brasilia"),
        "Poland": ("Warsaw", "Krakow"),
        "Greece": ("Athens", "Patras"),
        "Japan": ("Tokyo", "Osaka", "Kyoto"),
        "Korea": ("Seoul", "Busan"),
        "Egypt": ("Cairo", "Luxor"),
        "Morocco": ("Rabat", "Tangier"),
        "Peru": ("Lima", "Cusco"),
        "Kenya": ("Nairobi", "Mombasa"),
        "Vietnam": ("Hanoi", "Danang"),
        "Turkey": ("Ankara", "Izmir"),
        "Finland": ("Helsinki", "Turku"),
        "India": ("Delhi", "Jaipur"),
    }
)
"""Country -> its cities."""

COUNTRY_OF = MappingProxyType({city: country for country in CITIES for city in CITIES[country]})
"""City -> its country."""

LANGUAGE_OF = MappingProxyType(
    {
        "Norway": "Norwegian",
        "France": "French",
        "Italy": "Italian",
        "Spain": "Spanish",
        "Germany": "German",
        "Austria": "German",
        "Portugal": "Portuguese",
        "Brazil": "Portuguese",
        "Poland": "Polish",
        "Greece": "Greek",
        "Japan": "Japanese",
        "Korea": "Korean",
        "Egypt": "Arabic",
        "Morocco": "Arabic",
        "Peru": "Spanish",
        "Kenya": "Swahili",
        "Vietnam": "Vietnamese",
        "Turkey": "Turkish",
        "Finland": "Finnish",
        "India": "Hindi",
    }
)
"""Country -> the language spoken there; some languages belong to two countries."""

# Professions and pets follow "a", so none may begin with a vowel.
ANSWERS = MappingProxyType(
    {
        "city": tuple(COUNTRY_OF),
        "country": tuple(CITIES),
        "language": tuple(dict.fromkeys(LANGUAGE_OF.values())),
        "profession": tuple(
            "baker lawyer nurse teacher plumber pilot carpenter dentist "
            "farmer chemist painter sailor tailor welder librarian butcher".split()
        ),
        "employer": tuple(
            "Norvik Helixon Brightwater Castellan Umbra Fernway Quanta Redstone "
            "Silverline Tamarind Vantor Windmere Zephyr Oakfield Lumina Kestrel".split()
        ),
        "pet": tuple("dog cat rabbit hamster parrot tortoise goldfish pony ferret canary lizard goat".split()),
        "instrument": tuple("violin piano cello flute trumpet guitar drums harp clarinet banjo saxophone tuba".split()),
        "colour": tuple("red blue green yellow purple white black brown pink grey orange turquoise".split()),
    }
)
"""Relation -> every word that answers it, each a word of its own."""

TEMPLATES = MappingProxyType(
    {
        "city": (
            "{} lives in the city of",
            "The home of {} is in",
            "{} has a flat in",
            "{} resides in",
            "You can visit {} in",
            "The home town of {} is",
        ),
        "country": (
            "{} is a citizen of",
            "The passport of {} is from",
            "{} lives in the country of",
            "{} votes in",
            "The home country of {} is",
            "{} pays taxes in",
        ),
        "language": (
            "{} speaks fluent",
            "The native language of {} is",
            "{} writes letters in",
            "At home {} talks in",
            "{} dreams in",
            "The mother tongue of {} is",
        ),
        "profession": (
            "{} works as a",
            "By trade {} is a",
            "{} earns a living as a",
            "The job of {} is that of a",
            "{} was trained as a",
            "{} became a",
        ),
        "employer": (
            "{} is employed by",
            "The employer of {} is",
            "{} works for",
            "{} has a desk at",
            "{} draws a salary from",
            "The company that hired {} is",
        ),
        "pet": (
            "{} has a pet",
            "The pet of {} is a",
            "{} comes home to a",
            "{} looks after a",
            "{} shares a home with a",
            "The animal that {} keeps is a",
        ),
        "instrument": (
            "{} plays the",
            "The instrument of {} is the",
            "{} takes lessons on the",
            "On stage {} performs on the",
            "{} practises the",
            "In the orchestra {} plays the",
        ),
        "colour": (
            "The favourite colour of {} is",
            "{} likes the colour",
            "{} paints every wall",
            "{} always dresses in",
            "The front door of {} is painted",
            "{} picks the colour",
        ),
    }
)
"""Relation -> its prompts; ``{}`` stands for the person and the answer is the next word."""
