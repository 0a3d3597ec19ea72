"""Lists of words by which names of people are told from other words: names, words that look like them, and helpers.

`names` has the rules that read them. Add to `EPONYMS`, `DEVICES` and `SUBSTANCES` what a cohort loses wrongly.
"""

from __future__ import annotations

import re

from pipeline.cohorts.homographs import HOMOGRAPHS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What is written with a capital and is no member of staff. Signs, lines, lobes and diseases named after people, then
# devices and their makers, then drugs and tests, then the calendar. Add to it what a cohort loses wrongly.
EPONYMS = _words("""
    kerley hampton westermark palla fleischner golden luftsichel monod felson chilaiditi morgagni bochdalek
    pancoast ghon ranke rasmussen assmann hodgkin non-hodgkin kaposi ewing wilms burkitt castleman wegener churg
    strauss churg-strauss goodpasture caplan swyer swyer-james swyer-james-macleod kartagener williams-campbell
    mounier mounier-kuhn marfan noonan loeffler löffler hamman hamman-rich macklin boerhaave mallory weiss
    mallory-weiss zenker barrett schatzki dressler eisenmenger fallot ebstein uhl takayasu kawasaki behçet behcet
    sjögren sjogren hashimoto crohn hirschsprung meckel schmorl scheuermann sprengel klippel klippel-feil
    hill-sachs bankart salter-harris gaucher langerhans erdheim chester erdheim-chester rosai dorfman
    rosai-dorfman osler rendu osler-weber-rendu scimitar bornholm naclerio doege doege-potter heerfordt löfgren
    lofgren schaumann birt birt-hogg-dubé birt-hogg-dube hermansky pudlak hermansky-pudlak lambert-eaton raynaud
    moraxella klebsiella legionella staphylococcus streptococcus aspergillus pneumocystis mycoplasma mycobacterium
    nocardia haemophilus pseudomonas candida histoplasma cryptococcus varicella ziehl-neelsen virchow troisier
    luschka lisfranc traube kirklin okuda ann-arbor lugano trendelenburg towne stenvers cheyne-stokes kussmaul
    blalock taussig blalock-taussig fontan senning bentall rastelli nissen roux-en-y whipple eloesser clagett
    bjork bjork-shiley starr starr-edwards billroth dieulafoy dercum legg calve perthes duchenne charcot
    charcot-marie-tooth alzheimer creutzfeldt lyme riedel fuhrman bosniak child-pugh bence-jones x-ray roentgen
    röntgen doppler hounsfield gaussian valsalva müller-mandeville fahrenheit celsius
    """)

DEVICES = _words("""
    swan ganz swan-ganz dobhoff dobbhoff dobhof corpak keofeed hickman broviac groshong port-a-cath portacath
    mediport permcath perm-a-cath tesio quinton shiley shiley's bivona portex jackson-pratt pleurx pleur-x
    heimlich malecot foley dobhoff's blakemore sengstaken sengstaken-blakemore minnesota impella heartmate
    heartware medtronic biotronik watchman amplatzer mitraclip lariat micra corevalve sapien carpentier-edwards
    st-jude linq cordis powerport powerpicc bioflo steinmann kirschner k-wire luque vertebroplasty kyphon nuss
    ravitch thoracostomy wallstent palmaz gianturco dumon zephyr chartis lvad novalung ecmo cardiohelp optiflow
    bipap cpap carestream siemens philips fuji fujifilm konica agfa toshiba hologic gopher onyx lipiodol gelfoam
    surgicel teflon gore-tex goretex dacron marlex prolene telfa kangaroo
    """)

SUBSTANCES = _words("""
    omnipaque visipaque isovue ultravist gastrografin gadavist magnevist dotarem lasix amiodarone bleomycin
    tylenol heparin keytruda opdivo remdesivir tocilizumab lovenox coumadin accutane methotrexate ray rays covid
    covid-19 coronavirus sars-cov-2 sars mers influenza chinese wuhan
    """)

CALENDAR = _words("""
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december christmas easter jan feb mar apr jun jul aug sep sept oct nov dec
    """)

SHARED_EPONYMS = _words("""
    simon williams campbell turner graves addison cushing down harrison poland harris paget sweet hoover potter
    potts horner gram louis ludwig cooper glisson fowler waters chadwick austin graham glenn ross heller lewis
    mckeown hill edwards becker parkinson jones gleason smith bennett barton jefferson salter neer colles pott
    norwood huntington hartmann bergman bergmann jackson levin salem cook arrow boston jude abbott montgomery
    blake greenfield carpentier gunther bard haller cobb feil weber macleod james sprengel meigs allen mason
    gordon stewart murray hunter grant
    """)

KEPT = EPONYMS | DEVICES | SUBSTANCES | CALENDAR

# Given or family names that are words of reports, or of English, too: alone they are no evidence of a person.
ORDINARY = (
    KEPT
    | HOMOGRAPHS
    | _words("""
    white black brown gray grey green blue red young old long short small little large big low high hill hills
    rice head hand foot bone bones back neck chin legg shoulder ball case cases clear colon corona day field
    fields glass lang more peri post real room rose seven wall ward weeks week best bird bond branch bridge
    bridges car carry char comment company convey cross dash date deep early english fall forget freely fresh
    gates good held holder hood hope judge key law lie list major mark marks master mate moe page pages parent
    peer hemi made lean raid hung wage jail anon fancy forum kick lucky tilde demi aria meta cara ante ana gala
    saga grit lore mona basic begin bail bare brands cant carrier doctor fair falcon font guard link magic must
    parts reader roots rust sec soon steer story sun sunder too topic widen bite org gerd ted pam rita pi pop
    power powers price read rich ring said sales sane sans singleton smart stack stock strand strong west wild
    wise man an antero can carina line per ray us linea among del dev diamond don edit elif else eta ever floor
    florence german grace grant harm iris job lone lot love max mine my odd sad sandy sep server sine sole ties
    till tone tri valid van will june august summer autumn winter spring dawn star ruby amber pearl jade violet
    chase drew dale clay rod art gene guy bill rob jack stone lane brook brooks cliff heath rusty randy dusty
    misty stormy sunny candy honey daisy lily holly ivy fern hazel heather olive myrtle ginger basil sage reed
    forest river rivers miles prince king earl duke bishop dean deacon porter hunter fisher tanner mason cooper
    carter parker walker christian roman constant clement ernest frank joy kitty lance merit norm patience penny
    pierce robin rocky royal sterling temple trinity valentine victor wade angel china chance destiny dallas
    houston paris india asia america charity crystal darwin elder eden essence harmony jewel journey justice
    liberty melody mercy nova orion precious princess queen reality serenity ember virginia carolina georgia
    dakota savannah vita aura alba marina prima rosa vera luz pia clara costa bell bush cloud cook cotton dodge
    dove fine fish flowers foster fox free french frost fry gamble garden gold golden goodman hardy hart harp hay
    hays horn house huff hull keys kidd knee knight lamb land landing lake lead locke lowe lung lungs mace marsh
    may mayo mean means mills minor moon moss nail nails noble north south east northern pace park parks peak pen
    pike pipes pitts plain pole pool poole pope pratt pride proper pruitt quick rains rand range ranges rash reach
    reeves rest rhodes roach rock root ross rush salt sand sharp shields shore sides silver skinner slack spear
    speed steel steele stern stiff storm stout street summers swan sweet swift terry thorn tipton tube valve vein
    vessel void waller wash water waters wave waves way well wells wheeler wing wire wood woods worth yoder bass
    beam beard bend blank block bolt border bow box brace brand bright bulla burn burns butt button camp cast
    chest church coil cold cole cord core crane curry cyst drain duct dunn dye edge face faith fat film fist flood
    focal force grid groin hail hale haze hazy heart hilar hollow hook hose joint kidney knot lesion lobe loop
    mass mild miner moderate nodule normal opacity patch pink plate point prior rib ribs sack scar seal side sign
    stable stent stomach supine tail tear thin tip tract trace upper lower view views wedge width zone baker banks
    barber barker berry booth bower butler chandler chambers cherry close coats conn cutler daily dear dial ford
    given goes grove handler hanger hast laws mann meek merry mile mill mobley moody moore much nice over pain
    pair past peace pease plum potter pound presley print purple rising round rowe rule sample savage self shaw
    sheets shell shutter single slim snow sparks speaker spine stamps stark store strange taper thick thorne toll
    tongue towers town toy true turn twin unit vale viola wait waite walls weaver web welch whole winn wolf work
    works alla alma una dura media magna simplex costal norma bruna luna nina marine reine aine france ocean prune
    fleur blanche claire constance prudence aimee desire melon angina martina nadir sofia dolores pilar rosario
    mercedes consuelo concepcion remedios socorro soledad milagros asuncion encarnacion trinidad paz cruz montes
    prado rios sierra vega vargas campo campos marin cabeza rey leon iglesias fuentes torres blanco rubio delgado
    calvo moreno gallo crespo izquierdo sanz bueno bravo bello santo santos seco pulmon klein gross groß kurz
    lange kleine schwarz weiß weiss braun roth jung alt krause vogel winkel herz kopf haupt koch beck ende petit
    grand gros blanc noir brun roux leger besse lebrun simple maximum serum ala alar mayor menor leve final
    """)
)

TITLES = _words("""
    dr drs doctor doctors prof professor mrs miss mx dra sra srta señor señora senor senora doña docteur
    docteure doktor herr frau mme mlle monsieur madame oberarzt oberärztin chefarzt chefärztin assistenzarzt
    assistenzärztin priv-doz priv.-doz univ.-prof univ-prof dott dottor dottoressa sir
    """)

TITLES_WITH_DOT = _words("mr ms m pr sr")  # without a dot, `MR` is an image and `MS` a disease

AFTER_TITLES = _words("med dent univ habil dipl h.c and und y et")

FILLERS = _words("""
    findings finding result results report reports study studies exam examination film films image images
    radiograph these this those the above all critical urgent important preliminary final impression was were is
    are has have had been be being also then and or by with to at on in of as via for from per who it its that
    there which a an dr case update recommendation recommendations wet electronically subsequently immediately
    directly personally promptly initially reviewed called verbally i we you he she they not when time
    """)

FUNCTION = FILLERS | _words("""
    no without never nor neither into over under before after since during but if than though while will would
    should could may can did does do done seen called agreed agrees requested stated said reviewed discussed
    informed notified paged noted aware concurs concurred his her their yesterday today am pm him them please
    """)

NO_PERSON = (
    FUNCTION
    | TITLES
    | _words("""
    patient patients pt team family staff service surgery medicine radiology cardiology oncology pulmonary nursing
    anesthesia emergency department unit icu hdu itu mdt ccu picu nicu ed er ward floor clinic lab pathology
    habitus pacs hospital
    protocol minute hour day week month year technique report reports history criteria guidelines guideline policy
    standard request routine usual convention definition size volume density appearance comparison exclusion default
    ct mr mri us xr cxr pet echo ultrasound radiograph radiographs film films fluoroscopy imaging tomography
    angiography
    endoscopy bronchoscopy palpation auscultation biopsy needle catheter tube tubes line lines drain drains lead leads
    wire wires clip clips stent pacemaker device hardware air fluid gas blood pus contrast barium mass nodule
    effusion edema oedema pneumonia pneumothorax consolidation atelectasis opacity opacities infiltrate disease
    process infection tumor tumour cancer lesion fracture lung lungs heart aorta trachea diaphragm rib ribs spine
    apex base hilum carina artery vein lobe chest abdomen stomach bowel esophagus oesophagus liver left right
    upper lower middle mid both either each one two three first second third single multiple several many few some any
    most least less lesser further repeat follow-up followup review position tip end side level degree extent amount
    need needed plan able unable attempt attempts order ability failure due likely unlikely possible possibly probable
    probably concern concerning suspicious clinical correlation correlate adequate similar identical unchanged stable
    normal abnormal mild moderate severe new acute chronic recent prior previous interval now again
    here there outside inside home o'clock rehab school work physician physicians clinician nurse doctor
    radiologist surgeon
    resident attending fellow therapist technologist provider consultant mother father wife husband parent parents son
    daughter caregiver someone anyone nobody everybody everyone others other another himself herself itself themselves
    phone email letter fax pager ambulance helicopter bed chair bedside portable mobile procedure study studies exam
    placement insertion removal repositioning injection infusion intubation extubation ventilation inspiration
    expiration rotation motion patient's weight gravity lordotic cm mm ml percent half third quarter comparison inch
    question mark angle plain supine erect upright lateral frontal oblique decubitus means way virtue nature
    patienten patientin patiente paciente équipe equipo klinik station équipe protocole protocolo servicio
    """)
)
"""What stands where persons stand, and is none."""

PARTICLES = _words("""
    van von der den de del della di da dos das du la le las los el al bin ibn ben ten ter zu zum zur af av y d' mc
    mac
    """)

STRONG_PARTICLES = _words("van von der den del della dos ten ter bin ibn zu zum zur")

TAKERS = _words("by per of for with to from von por par mit con avec via")

DONE = _words("""
    noted seen described mentioned documented measured ordered requested referred performed placed inserted removed
    obtained compared prior previous submitted provided repositioned exchanged adjusted accepted done repeated
    rechecked checked flushed sited resited taken shown sent asked answered written typed
    """)
"""After these and `by` a word that is a family name too is one."""

DEGREES = _words("""
    md m.d rn r.n phd ph.d np n.p crnp aprn arnp pa-c rpa-c frcr frcpc frcp franzcr facr fccp mbbs mbchb mbbch
    mrcp do d.o dnp lpn bsn msn mph dabr ffrrcsi esq r.t.r msc
    """)

DEGREES_IN_CAPITALS = _words("do np msc")

DOTTED = _words("a.m p.m i.e e.g a.p p.a n.g e.t i.v p.o s.p h.o b.i.d t.i.d c.t u.s a.c q.d w.r.t c.w m.r r.o")

SHORT_GIVEN = _words("""
    amy ann ben bob dan eva ian ida jan jim joe jon ken kim lea leo liz luc meg mia pam raj ron roy sue ted tim
    tom zoe
    """)

SHORT_FAMILY = _words("li hu wu xu ma ng yu ye lu su ho he ko oh an yi ge du ji qi bo lo hsu luo cai")
"""Family names of so few letters that only their place tells them from an abbreviation."""

MEDICAL_ENDING = re.compile(
    r"(?:scop(?:y|ic)|graph(?:y|ic|s)?|grams?|[ts]ions?|ments?|ness|ity|osis|oses|itis|emia|aemia|oma|omas|path(?:y|ic)|ectomy"
    r"|ostomy|otomy|plasty|metry|metric|logy|logic|ical|ular|ous|ive|able|ible|ally|ing|ings|ed|ic|al|ance|ence|ities"
    r"|ism|centesis|therapy|sound|scan|esis|gie|tik|keit|ung|heit|ción|ía|tomie|skopie)\Z"
)

# Frequent names that the list of their country has in another script only, or not at all.
MORE_GIVEN = _words("""
    wei jun ming hui ying xin yan hao jing lei xiao yong hong mei-ling xiaoming xiaoyan min-jun ji-hoon ji-woo
    soo-jin seung-hyun sung-min young-ho hyun-woo hiroshi takashi kenji haruto yuki sakura akira naoko keiko yoko
    satoshi rajesh suresh ramesh mahesh vikram sanjay vijay ajay anil sunil deepak manoj rakesh kavita priya
    anjali meera pooja neha sunita lakshmi imran bilal ayesha farah tariq omar ahmed ahmad mohamed mohammed
    muhammad mahmoud mustafa hussein hassan khalid fatima layla nadia amina yusuf ibrahim youssef reza hossein
    shirin farhad dariush maryam moshe avi shira yael noam eitan ivan sergei dmitri vladimir olga tatiana natalia
    irina oksana svetlana yuri boris armen dimitrios georgios ioannis eleni konstantinos somchai linh duc thanh
    minh hung jose luis jesus
    """)

MORE_FAMILY = _words("""
    li wang zhang liu chen yang huang zhao wu zhou xu sun ma zhu hu guo he lin gao luo zheng liang xie tang feng
    cheng cheung leung wong chan lam chow lau yeung kwok ng kim park choi jung kang cho yoon jang lim tanaka sato
    suzuki takahashi watanabe ito nakamura kobayashi yamamoto kato yoshida yamada sasaki patel shah singh sharma
    gupta kumar iyer nair reddy rao desai mehta joshi verma mishra banerjee mukherjee chatterjee krishnamurthy
    venkataraman khan ahmed hussain siddiqui qureshi chaudhry malik hassan haddad mansour mahmoud abdullah
    hosseini ahmadi rahimi cohen levy goldberg rosenthal katz shapiro friedman ivanov ivanova petrov kuznetsov
    volkov volkova shevchenko sarkisian papadopoulos georgiou nguyen tran pham le-thi hoang phan vu vo dang bui do
    ngo duong
    """)

LOCALES = (
    *(
        "en_US",
        "en_GB",
        "en_IE",
        "en_IN",
        "en_NG",
        "en_PK",
        "en_NZ",
        "de_DE",
        "de_AT",
        "fr_FR",
        "fr_CA",
        "es_ES",
        "es_MX",
    ),
)

MORE_LOCALES = (
    *("fi_FI", "hu_HU", "ro_RO", "sk_SK", "sl_SI", "id_ID", "en_KE"),
    *("et_EE", "lt_LT", "lv_LV", "az_AZ", "en_TH", "sw", "zu_ZA", "yo_NG", "ha_NG", "ig_NG", "tw_GH"),
    *("it_IT", "pt_BR", "pt_PT", "nl_NL", "pl_PL", "sv_SE", "no_NO", "da_DK", "tr_TR", "cs_CZ", "hr_HR", "vi_VN"),
)
