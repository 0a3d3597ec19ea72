"""Names of the lists that are words, too, in the languages whose reports are read: alone they tell of nobody.

Found by crossing the lists of names with dictionaries (Debian's wamerican-large, hunspell-en-med, wfrench, wspanish,
wngerman) and kept where the word may stand in a report. Names that are only trades or animals (`baker`, `finch`) and
rare in reports stay names. Add what a cohort loses wrongly. Not here: eponyms and devices (`cohorts.words`).
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ENGLISH = _words("""
    abate anima antic auger balas bale baron bath bean beau beer bender bilge bitten blanch blot bogus bray brick
    brink buck bull burr butte caldera canal canals cannon canny carton coca colic coll comber combs comer comfort
    contractor coral corral dada damps dang danish diver divine domino drub drum duff farmer fay fee feline filar
    fleck flora franc front fuller gall gasser gay glasses glazer goral gore gravel graves grill grimes grunt
    gulper gunner ham hammer harsh hasty hemal herring hovel immaculate indie innocent ivory junior junk kern kiss
    knoll lacy lad lam lament leach leech lees loot lucid luster macho mad mall mallet mane mares marron marry mas
    mater maxi maxim maxima meadows medic merchant mesa mesic moan molder moron mullen nary nick nickel nurser oak
    pal pall pant pare pascal paten patty piper plank pock pol poll pons purity quill rafter rails ram rares rath
    rattan raven richer ridge safari sager salvo sandal sem sen senator sever shine silk sola sonata soprano
    spears spence stela sterna suits supple sura swords tang tank thole tome toms toner toots tours trine urban
    veer vela victory vigil ware warmer
    """)

_MEDICAL = _words("""
    almus amara andra antra arce arian arjona armata armin baria baro benigna bien canales cerci chus compton
    durante dynia emin ergotic ermes erna fundi gamon golgi grande gras gual guarana hara helle hore kala kang
    kata koha lacis lana lata limon marinus massa menton metel orcin palma panus pena pero plana porta rana ratti
    ros sarin sinica situm sur tere titin tonia uria valent vitalis
    """)

_FRENCH = _words("""
    aime aimé aimée allas aller alpin alvin amie armas barre bava borde bru bulle canas carre cerna cerne cetera
    charron clair clerc corrie côté dalla devin deviner dolic dore duras forma gagne gaine gaines garda garde
    germain grau grenier haire hardi hardie hein honore hume jolie labelle laine lampa lande lasse lut magne maire
    malin malle malte mander mante masse massé matura mette mille mira mur muret nette neveu palle palus panca
    parada pardi paré pelle pimenta plante pompa pont racine radi radin roda rogner roter sabir stocker tardif
    tata tatar tiare traversa vasa velta vespa ville voisin zanzi
    """)

_SPANISH = _words("""
    abad abril acero aguado agudo alana alara alegre amado amador amo amol amor amparo anunciación aparecida
    aparicio arco arda argento ascensión asta baca bala balay barba barbero barranco barrena barriga bastida
    batalla borra botella botica bregar cabello cabo cadena cader calzada camino campano campillo canil caridad
    caro carrera carro ceja cerda cerro cinta cobo cora corra correr cortina cristal cristiano cuadrado curro dar
    dino draga espinal estrella fierro flor fondo forza fuente gabela gema granado grieta grupa guardado guardia
    harto hasta herma hierro isla laguna langa lapsa lasa lastra limar llano logar macha madera madura magar malo
    malva manca manco marco marga masar mato mejer modesta modesto monja mota muro mutua máxima máximo nada nevado
    niño ojo orina oscuro pacífica parda pareja partida peinado pender pera peral pinol pintar poder poza pozo
    primitiva primitivo prudencia puente puerta pulido rama redondo reino rico roma ron ropero rutar río salud
    salva samper sarna segura severo siena solera tasar tecla tenis terrón timo tinca tirado tono tormo toro torre
    tunar usada vello venera verde verga visitación
    """)

_GERMAN = _words("""
    anders armen baum berg bergen beste binder blick bock buch darin das dass edel eimer einer engen falk flieger
    flink frisch fugen geiger gelder ging glück grund gute harte heim hell hellen herbst januar kant kinder klapp
    klare klug knapp knappe kosten kraft landen leber linke mangel mühle nagle rau rauch rege reich reicher reif
    rinne roden sauer scharf schauer scheibe schiefer schmuck schon schuh schutz schön spieß stahl stempel steuer
    stumpf tasche trost trüb wallen
    """)

HOMOGRAPHS = _ENGLISH | _MEDICAL | _FRENCH | _SPANISH | _GERMAN
