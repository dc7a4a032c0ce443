"""Vocabulary of the embedded world: what its categories, aspects and titles are called.

A theme holds words that lead a title and words that end it, so that a title tells a reader, or a
language model, what the item is about. Neighbours in a domain's ring of categories are related:
items combine them and users like them together.
"""

THEMES = {
    "fantasy": (
        "Ember Elven Enchanted Runic Mystic Moonlit Arcane Sorcerer's",
        "Crown Dragon Spell Throne Amulet Griffin Wizard Realm",
    ),
    "scifi": (
        "Stellar Quantum Orbital Android Lunar Galactic Cosmic Neon",
        "Starship Protocol Colony Nebula Circuit Robot Signal Planet",
    ),
    "horror": (
        "Haunted Cursed Bloody Rotting Ghostly Wicked Screaming Pale",
        "Crypt Asylum Ghost Coffin Nightmare Demon Graveyard Ritual",
    ),
    "thriller": (
        "Hidden Lethal Fatal Desperate Stolen Ruthless Covert Final",
        "Agent Target Pursuit Conspiracy Hostage Countdown Traitor Assassin",
    ),
    "mystery": (
        "Missing Secret Silent Curious Locked Vanished Puzzling Forgotten",
        "Detective Clue Alibi Witness Cipher Inspector Riddle Corpse",
    ),
    "history": (
        "Imperial Roman Medieval Royal Colonial Victorian Forgotten Viking",
        "Empire Dynasty Revolution Emperor Chronicle Century Republic Siege",
    ),
    "biography": (
        "Honest Restless Famous Humble Untold Remarkable Private Brave",
        "Life Memoir Diary Portrait Letters Journey Legacy Childhood",
    ),
    "travel": (
        "Distant Coastal Wandering Tropical Alpine Southern Nomad Island",
        "Road Harbor Voyage Train Passport Caravan Horizon Map",
    ),
    "nature": (
        "Wild Green Mossy Wooded Feathered Autumn River Golden",
        "Forest Meadow Owl Garden Mountain Wolf Tide Orchard",
    ),
    "cooking": (
        "Spicy Sweet Rustic Salted Smoky Buttered Roasted Fresh",
        "Kitchen Recipe Bakery Supper Pantry Feast Bread Soup",
    ),
    "humor": (
        "Silly Awkward Clumsy Ridiculous Grumpy Hopeless Cheeky Absurd",
        "Uncle Pigeon Landlord Disaster Sandwich Neighbor Excuse Goat",
    ),
    "romance": (
        "Tender Summer Blushing Faithful Velvet Sweetheart Longing Midnight",
        "Kiss Wedding Promise Heart Bride Valentine Bouquet Embrace",
    ),
    "adventure": (
        "Lost Daring Uncharted Jungle Buried Fearless Wandering Sunken",
        "Treasure Expedition Temple Compass Explorer Island Quest Canyon",
    ),
    "action": (
        "Blazing Explosive Savage Raging Iron Furious Deadly Unstoppable",
        "Fist Strike Commando Vengeance Hammer Fury Blade Mayhem",
    ),
    "crime": (
        "Crooked Gangster Dirty Corrupt Backstreet Guilty Armed Outlaw",
        "Heist Mob Verdict Robbery Informer Jail Syndicate Alley",
    ),
    "drama": (
        "Broken Fragile Quiet Weeping Lonely Bitter Distant Tender",
        "Family Farewell Daughter Silence Regret Winter Sorrow Window",
    ),
    "war": (
        "Wounded Marching Fallen Steel Burning Veteran Frontline Allied",
        "Trench Platoon Battalion Bunker Soldier Regiment Armistice Bomber",
    ),
    "western": (
        "Dusty Prairie Frontier Lonesome Desert Rattlesnake Cattle Rusty",
        "Sheriff Saloon Gunslinger Ranch Stagecoach Saddle Bounty Mustang",
    ),
    "shooter": (
        "Sniper Tactical Rapid Loaded Hostile Bullet Rogue Armored",
        "Barrage Squad Crosshair Ambush Recoil Warhead Gunfire Cartridge",
    ),
    "survival": (
        "Starving Stranded Frozen Barren Ragged Last Wasteland Feral",
        "Shelter Campfire Island Winter Famine Outpost Castaway Bonfire",
    ),
    "rpg": (
        "Ember Elven Runic Arcane Questing Mystic Paladin's Eternal",
        "Kingdom Dragon Guild Dungeon Spell Relic Legend Tavern",
    ),
    "strategy": (
        "Imperial Grand Conquering Allied Noble Warring Rising Cunning",
        "Empire Siege Dominion Fortress General Conquest Treaty Legion",
    ),
    "simulation": (
        "Busy Little Harvest Airport Railway Tiny Modern Country",
        "Farm Tycoon Town Factory Hospital Builder Cockpit Market",
    ),
    "racing": (
        "Turbo Drifting Nitro Speeding Asphalt Roaring Reckless Midnight",
        "Circuit Rally Throttle Racer Engine Lap Highway Overdrive",
    ),
    "sports": (
        "Ultimate Winning Olympic Rookie Sliding Pro Undefeated Street",
        "League Champion Goalkeeper Stadium Striker Tournament Coach Derby",
    ),
    "puzzle": (
        "Clever Twisted Tangled Mirror Logical Hollow Folded Sliding",
        "Cube Maze Labyrinth Pattern Mosaic Tiles Riddle Lock",
    ),
    "platformer": (
        "Bouncing Jumping Pixel Tumbling Bubbly Plucky Candy Wobbly",
        "Hopper Rabbit Springs Ladder Jungle Mushroom Balloon Frog",
    ),
}

CATEGORIES = {
    "books": {
        "Fantasy": "fantasy",
        "Science Fiction": "scifi",
        "Horror": "horror",
        "Thriller": "thriller",
        "Mystery": "mystery",
        "History": "history",
        "Biography": "biography",
        "Travel": "travel",
        "Nature": "nature",
        "Cooking": "cooking",
        "Humor": "humor",
        "Romance": "romance",
    },
    "ml25m": {
        "Adventure": "adventure",
        "Action": "action",
        "Sci-Fi": "scifi",
        "Horror": "horror",
        "Thriller": "thriller",
        "Crime": "crime",
        "Drama": "drama",
        "War": "war",
        "Western": "western",
        "Comedy": "humor",
        "Romance": "romance",
        "Fantasy": "fantasy",
    },
    "steam": {
        "Action": "action",
        "Shooter": "shooter",
        "Horror": "horror",
        "Survival": "survival",
        "Adventure": "adventure",
        "RPG": "rpg",
        "Strategy": "strategy",
        "Simulation": "simulation",
        "Racing": "racing",
        "Sports": "sports",
        "Puzzle": "puzzle",
        "Platformer": "platformer",
    },
}

ASPECTS = {
    "books": ("pacing", "characters", "prose", "plot", "setting", "research", "dialogue", "ending"),
    "ml25m": ("acting", "soundtrack", "script", "visuals", "pacing", "ending", "cast", "stunts"),
    "steam": (
        "story",
        "graphics",
        "controls",
        "multiplayer",
        "music",
        "combat",
        "replay",
        "crafting",
    ),
}
PRAISE = ("superb", "wonderful", "very strong", "a delight", "memorable")
BLAME = ("weak", "flat", "a let-down", "forgettable", "tiresome")
