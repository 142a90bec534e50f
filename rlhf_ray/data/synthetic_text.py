"""The words that synthetic answers are made of: household topics with right and wrong steps, courtesies, filler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """What a prompt asks for ("cook rice"), and steps of an answer: each one right, with a wrong version of itself."""

    name: str
    steps: tuple[tuple[str, str], ...]


def _topic(name: str, *steps: str) -> Topic:
    """Steps are written "right | wrong"."""
    return Topic(name, tuple((right, wrong) for right, wrong in (step.split(" | ") for step in steps)))


TOPICS = (
    _topic(
        "cook rice",
        "Rinse the rice until the water runs clear. | Leave the rice dusty, for rinsing spoils it.",
        "Take two cups of water for each cup of rice. | Take nine cups of water for each cup of rice.",
        "Keep the lid on while it simmers. | Lift the lid every minute while it simmers.",
        "Let the rice rest for ten minutes off the heat. | Serve the rice while it still boils.",
        "Loosen the grains with a fork. | Mash the grains with a hammer.",
    ),
    _topic(
        "repot a house plant",
        "Choose a pot one size larger, with a hole in the bottom. | Choose a pot without a hole, so that water stays.",
        "Loosen the roots gently with your fingers. | Cut all the roots off.",
        "Fill the gaps with fresh soil. | Fill the gaps with dry sand and salt.",
        "Set the plant as deep as it stood before. | Bury the plant up to its top leaves.",
        "Water the plant well and keep it out of strong sun. | Give the plant no water and put it in strong sun.",
    ),
    _topic(
        "change a bicycle tube",
        "Let all air out of the old tube. | Pump the old tube up as hard as you can.",
        "Lift the tyre over the rim with two levers. | Cut the tyre open with a knife.",
        "Feel inside the tyre for thorns and glass. | Never look inside the tyre.",
        "Put a little air in the new tube before you fit it. | Fold the new tube flat and twist it as you fit it.",
        "Pump slowly and watch that the tyre sits evenly. | Pump until the tyre bangs.",
    ),
    _topic(
        "write a letter of thanks",
        "Name the gift or the favour in the first line. | Never mention what you are thankful for.",
        "Say how you have used it since. | Say that you gave it away at once.",
        "Write by hand if you can. | Write on the back of a bill.",
        "Send the letter within two weeks. | Send the letter after three years.",
        "End the letter with a kind wish for the reader. | End the letter with a request for money.",
    ),
    _topic(
        "sleep better at night",
        "Go to bed at the same hour each evening. | Go to bed at a different hour each evening.",
        "Keep the bedroom cool and dark. | Keep all lamps in the bedroom lit.",
        "Put the phone away an hour before bed. | Read the phone in bed until you drop it.",
        "Drink no coffee after noon. | Drink strong coffee just before bed.",
        "Get some daylight in the morning. | Stay behind closed curtains all day.",
    ),
    _topic(
        "train a puppy to sit",
        "Hold a treat just above the nose. | Hide the treat in another room.",
        "Say the word sit once, in a calm voice. | Shout twenty different words.",
        "Reward the puppy the moment it sits. | Reward the puppy an hour after it sits.",
        "Practise for five minutes, several times a day. | Practise for six hours without a break.",
        "Stop the lesson while the puppy still enjoys it. | Scold the puppy until it is afraid.",
    ),
    _topic(
        "bake a loaf of bread",
        "Weigh the flour and the water. | Guess the flour with your eyes shut.",
        "Knead the dough until it is smooth. | Leave lumps of dry flour in the dough.",
        "Let the dough rise until it has doubled. | Put the dough in the oven before it rises.",
        "Heat the oven well before the loaf goes in. | Start with a cold oven and never heat it.",
        "Tap the loaf: it is done when it sounds hollow. | Take the loaf out while the middle is liquid.",
    ),
    _topic(
        "remove a wine stain",
        "Blot the stain with a clean cloth. | Rub the stain deep into the fibres.",
        "Rinse the cloth from the back with cold water. | Iron the stain while it is wet.",
        "Cover the spot with salt to draw the wine out. | Pour more red wine over the spot.",
        "Try any cleaner on a hidden corner first. | Pour bleach over coloured wool.",
        "Wash the cloth soon, while the stain is fresh. | Wait for a month before you wash the cloth.",
    ),
    _topic(
        "save money on groceries",
        "Write a shopping list and keep to it. | Buy whatever the loudest poster shows.",
        "Compare the price per kilogram. | Look at the colour of the box, not at the price.",
        "Cook larger amounts and freeze what is left. | Throw away whatever is left.",
        "Buy fruit and vegetables in season. | Buy strawberries in the depth of winter.",
        "Never shop when you are hungry. | Shop only when you are very hungry.",
    ),
    _topic(
        "prepare for a job interview",
        "Read what the company does and whom it serves. | Learn nothing about the company.",
        "Have three examples of your own work ready. | Say that you have forgotten what you did before.",
        "Practise the answers aloud with a friend. | Read the answers from a paper without looking up.",
        "Arrive ten minutes early. | Arrive one hour late.",
        "Bring two questions for the interviewer. | Ask the interviewer for nothing but a longer holiday.",
    ),
    _topic(
        "grow tomatoes on a balcony",
        "Give the tomatoes at least six hours of sun. | Keep the tomatoes in a dark cupboard.",
        "Tie the stems to a stick as they grow. | Let the stems hang over the rail and break.",
        "Water the soil, not the leaves. | Spray the leaves every night and keep the soil dry.",
        "Pinch out the shoots between stem and leaf. | Pinch off every flower.",
        "Feed the tomatoes every second week. | Feed the tomatoes with dish soap.",
    ),
    _topic(
        "clean a window",
        "Brush the dust off the frame first. | Smear the dust over the glass first.",
        "Use warm water with a drop of soap. | Use cooking oil.",
        "Pull the squeegee from top to bottom. | Scratch the glass with steel wool.",
        "Wipe the blade after each stroke. | Wipe the blade on the carpet, once a week.",
        "Choose a cloudy day, so that nothing dries too fast. | Choose the hottest hour of the summer.",
    ),
    _topic(
        "pack a suitcase",
        "Put the heavy things next to the wheels. | Put the heavy things on top of the shirts.",
        "Roll soft clothes so that they crease less. | Crumple all clothes into a ball.",
        "Fill the shoes with socks. | Fill the shoes with open bottles.",
        "Keep liquids in a closed bag. | Keep liquids loose between the papers.",
        "Weigh the suitcase before you leave. | Weigh the suitcase after the flight.",
    ),
    _topic(
        "learn the guitar",
        "Tune the strings before you play. | Tune the strings once in ten years.",
        "Begin with two easy chords. | Begin with the hardest solo you know.",
        "Practise a quarter of an hour every day. | Practise once a year for a whole night.",
        "Change chords slowly and in time. | Change chords as fast and as unevenly as possible.",
        "Press the strings close behind the fret. | Press the strings in the middle of nowhere.",
    ),
    _topic(
        "paint a room",
        "Cover the floor and tape the edges. | Let the paint drip on the bare floor.",
        "Fill the holes and sand the walls. | Leave nails and holes under the paint.",
        "Cut in along the corners with a brush. | Throw the paint at the corners.",
        "Roll from the window towards the door. | Roll yourself into a corner without a way out.",
        "Let the first coat dry before the second. | Put three wet coats on top of each other.",
    ),
    _topic(
        "remember names",
        "Repeat the name when you hear it. | Think of something else when you hear the name.",
        "Tie the name to a picture in your mind. | Mix the name up with three others on purpose.",
        "Use the name once in the conversation. | Call everybody by the same name.",
        "Write new names down in the evening. | Burn the list of names in the evening.",
        "Ask again at once if you did not catch it. | Never ask, and guess a name at random.",
    ),
    _topic(
        "make a pot of tea",
        "Warm the pot with hot water first. | Cool the pot with ice first.",
        "Take one spoon of leaves for each cup. | Take one single leaf for ten cups.",
        "Use fresh water that has just boiled. | Use lukewarm water from last week.",
        "Let black tea steep for four minutes. | Let black tea steep for two days.",
        "Take the leaves out before you pour. | Pour the leaves into the milk jug.",
    ),
    _topic(
        "back up a computer",
        "Keep one copy on an outside disk. | Keep the only copy in the same folder.",
        "Keep one more copy in another building. | Keep both disks on top of the same heater.",
        "Let the copies run by themselves every day. | Make a copy when the disk has already died.",
        "Try to restore a file now and then. | Never look whether a file can be restored.",
        "Protect the copies with a password. | Print the password on the lid of the disk.",
    ),
    _topic(
        "plan a birthday party",
        "Fix the date and the number of guests. | Tell every guest a different date.",
        "Ask the guests what they cannot eat. | Serve nuts to the guest who must not eat nuts.",
        "Send the invitations three weeks ahead. | Send the invitations on the day after the party.",
        "Choose games that suit the age of the guests. | Choose a tax lecture for the children.",
        "Leave time to clean up with a friend. | Leave the rubbish on the lawn for a year.",
    ),
    _topic(
        "start running",
        "Begin with short runs and walk in between. | Begin with a marathon on the first day.",
        "Run so slowly that you can still talk. | Run so fast that you see stars.",
        "Get shoes that fit your feet. | Run in boots that are two sizes too small.",
        "Rest for a day between two runs. | Run on through a sharp pain in the knee.",
        "Add a tenth to the distance each week. | Double the distance each morning.",
    ),
    _topic(
        "iron a shirt",
        "Check the label and set the heat. | Use the highest heat for every cloth.",
        "Iron the shirt while it is slightly damp. | Iron the shirt when it is bone dry and dirty.",
        "Start with the collar and the cuffs. | Start with the buttons and melt them.",
        "Move the iron along the threads. | Leave the iron standing on one spot.",
        "Hang the shirt up at once. | Push the shirt into a drawer at once.",
    ),
    _topic(
        "care for a cactus",
        "Water the cactus only when the soil is dry. | Keep the cactus in a bowl of water.",
        "Use sandy soil that drains well. | Use wet clay that holds every drop.",
        "Give the cactus a bright window. | Give the cactus a place under the bed.",
        "Keep the cactus cool and dry in winter. | Boil the cactus in winter.",
        "Hold the cactus with folded paper. | Hold the cactus with your bare hand, firmly.",
    ),
    _topic(
        "give a speech",
        "Decide on the one thing people should take home. | Speak about thirty things at once.",
        "Open the speech with a short story. | Open the speech with a long excuse.",
        "Look at one listener at a time. | Look at your shoes all the time.",
        "Pause after each main point. | Never breathe between two points.",
        "Rehearse the speech with a clock. | Speak until the last listener has left.",
    ),
    _topic(
        "treat a small burn",
        "Hold the burn under cool running water for twenty minutes. | Hold the burn over a flame for a minute.",
        "Take rings off before the skin swells. | Push tight rings over the swollen skin.",
        "Cover the burn loosely with a clean dressing. | Cover the burn with butter and flour.",
        "Leave blisters closed. | Prick all blisters with a dirty pin.",
        "See a doctor if the burn is larger than your palm. | Hide a large burn from the doctor.",
    ),
)

QUESTIONS = (
    "How do I {topic}?",
    "What is the best way to {topic}?",
    "Can you tell me how to {topic}?",
    "I want to {topic}. Where do I start?",
    "Please explain how to {topic}.",
    "What should I keep in mind when I {topic}?",
    "My friend asked me how to {topic}. What shall I say?",
    "Give me some advice: how does one {topic}?",
    "I have to {topic} tomorrow. Any tips?",
    "What are the steps to {topic}?",
    "Is there a simple way to {topic}?",
    "Help me to {topic}, please.",
)
CIRCUMSTANCES = (
    "",
    " I have never done it before.",
    " I do not have much time.",
    " I live in a small flat.",
    " My budget is small.",
    " It is for my grandmother.",
    " I tried once and it went wrong.",
    " Two children will help me.",
    " I would like to do it well.",
    " Nobody could tell me so far.",
)
# From rude (0) to warm (4)
OPENINGS = (
    ("What a stupid question.", "Not you again.", "Do you really not know that?", "You waste my time."),
    ("Fine, if I must.", "Well, whatever.", "All right, but be quick.", "Hm, if it has to be."),
    ("Here is an answer.", "This is what people do.", "The answer is as follows.", "One does it like this."),
    ("Sure, here is how.", "Yes, that can be done.", "Good idea, here you go.", "Certainly, try this."),
    (
        "What a lovely question, I am glad to help!",
        "Of course, with pleasure!",
        "Thank you for asking, I am happy to help!",
        "Gladly, let us do this together!",
    ),
)
CLOSINGS = (
    ("Now leave me alone.", "Do not ask me again.", "You will fail anyway.", "Even a child knows this."),
    ("That is all from me.", "Enough of that.", "Work the rest out yourself.", "No more questions."),
    ("That is the answer.", "This is how it is done.", "That should do.", "So much for that."),
    ("Good luck with it.", "I hope this works for you.", "Have a go at it.", "That will serve you well."),
    (
        "Please ask me again whenever you like!",
        "I wish you all the best and much joy with it!",
        "You will do wonderfully, good luck!",
        "Thank you, and do tell me how it went!",
    ),
)
FILLER = (
    "There are many things in the world, and this is one of them.",
    "As has been said before, some things are as they are.",
    "One could say a lot about this, and a lot has been said.",
    "It goes without saying that this goes without saying.",
    "In any case, and be that as it may, on the whole, it depends.",
    "At the end of the day, a day has an end.",
    "Needless to say, words are made of letters.",
    "To make a long story short, the story is long.",
)
LINKS = ("", "", "First, ", "Then ", "Also, ", "After that, ", "Next, ", "And ")
