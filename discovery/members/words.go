package members

import "strings"

// codeWords are the words of short codes: 512, so that each is worth 9 bits. They are common, and far apart: any two differ in
// their first four letters and by at least three slips of typing, so that one slip in a word can be told and put right.
var codeWords = strings.Fields(`
abacus acorn acrobat address admiral adobe advice agent airport album alley almanac almond alphabet alpine aluminum
amber amethyst anchor angle animal antenna april aquarium arcade arctic armor artist asphalt asteroid athlete atlas
aurora autumn avenue avocado award backpack badge bakery balcony balloon bamboo banana banjo barrel basil basket
bathtub bazaar beach beaver bedroom beehive beetle bell berry bicycle bird biscuit blender blossom blue boat bonfire
bonnet boulder bouquet bracelet bread brick broccoli bronze brother brush bubble buffalo butter cabbage cabin cactus
calendar calypso camel canoe canvas captain cardinal carpet cashew castle catfish cauldron cavern cedar celery cement
center cereal chair charcoal chess chimney chipmunk cinema cinnamon circus city clarinet clever cliff clinic clock
cobalt cobbler coconut coffee column compass concert cookie copper cotton council cousin coyote cradle crayon creek
cricket crown crystal cube cucumber culture cupboard cushion cyclone dahlia daisy dawn daylight december delta denim
desert desk diamond dingo dinner doctor dolmen dolphin domino donkey doorway drawer drum earth echo eclipse editor
effort elbow elephant embassy emerald emperor energy engine envelope essay estate evening fabric factory family father
fence festival fiddle field figure filter firefly flamingo flannel flask flint flood flower footpath forest fork
fortune fossil fountain freckle friday furnace galaxy garage garden garlic gate gazelle gemstone geyser giant giraffe
glacier glimmer glove goblet gorilla gospel granite grass gravel grocery guitar gymnast habitat hammock hamster
harmony harvest helmet herring hexagon hibiscus highway hiker hollow horizon horse hotel humid husky hydrant iceberg
idea igloo indigo inkwell insect invoice iris island ivory jackpot jaguar jasmine jersey jewel jigsaw jogger junction
juniper kangaroo kayak kernel ketchup keyboard kidney kindling kingdom kitchen kiwi knapsack knight knuckle koala
ladder lagoon lamp lantern laptop lasagna laundry lavender leaf legend lemon lentil leopard lettuce library lighter
lilac limerick linen lizard lobster locket lotus luggage lunch machine mailbox mammoth mandolin maple margin mason
mattress meadow medicine melody mercury mermaid meteor milk mineral mirror mitten moccasin molecule monday monsoon
morning mosaic moss mulberry museum mushroom mustard napkin narrow narwhal nature nectar nephew nickel nomad noodle
notebook november nugget numeral nursery nutmeg oatmeal object ocean october odyssey olympic omelet onion opal opera
orange orbit orchard origami osprey ostrich outdoor outline oxygen package painter palace pancake panda papaya paper
parsley pastry patio peanut pelican penguin perfume phoenix picnic pigeon pilot pioneer pirate pizza plaster poem
polar popcorn poppy porch portrait potato pottery powder prairie present prince pumpkin puppet purple pyramid quarry
queen quilt quiver rabbit raccoon radish railway rainbow raisin recipe record relay reptile ribbon rosemary rowboat
rustic saffron sailor salad sapphire sauce savanna scarf scholar science scooter seagull seed sherbet shoe shrimp
sketch skipper snail soccer sofa south spider spinach spoon spring square squirrel stable stadium starfish station
steam studio sugar summer sunset swallow sweater swift syrup tadpole tapestry teacher teapot temple tennis terrace
thimble thunder tornado tortoise tractor train trapeze treasure triangle trumpet tuesday tulip tundra tunnel turkey
tuxedo twig ukulele umbrella unicorn vanilla vessel village vinegar violin visitor volcano voyage waffle walnut
wedding whale wheat whisper window wolf wombat workshop wren yacht yogurt yoyo zebra zenith zeppelin zigzag zodiac
zucchini
`)
