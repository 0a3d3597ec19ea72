"""Names of staff: that none is left in a phrase, whatever its spelling, and that the words of findings stay.

Names and carriers here are not those that the rules were tuned on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest

from pipeline import config
from pipeline.cohorts import phantom, text
from pipeline.cohorts.text import scrub

K = 5
FULL_NAMES = """
    John Smith, Mary Johnson, Robert Williams, Patricia Brown, Jennifer Davis, Michael Miller, Linda Wilson,
    David Moore, Susan Taylor, James Anderson, Karen Thomas, Nancy Jackson, Daniel Harris, Betty Martin, Steven
    Thompson, Laura Clark, Kevin Lewis, Sharon Walker, Brian Hall, Michelle Allen, Edward Wright, Amanda Scott,
    Ronald Baker, Melissa Adams, Ann White, Mary Young, Peter Long, Lucy Small, Harold Hill, Emma Green, George
    Black, Helen Brooks, Diane Wood, Thomas Stone, Anna-Maria O'Neil, Sean O'Brien, Siobhan Murphy, Declan
    Gallagher, Fiona MacDonald, Hamish McGregor, Aoife Byrne, Rhys Llewellyn, Gwen Pritchard, Nigel
    Thistlethwaite, Clive Ramsbottom, Imogen Featherstone, Sarah Cohen, Avi Goldberg, Shira Rosenthal, Moshe
    Katz, Priya Patel, Rajesh Sharma, Anjali Gupta, Vikram Singh, Deepak Krishnamurthy, Lakshmi Venkataraman,
    Sanjay Iyer, Meera Nair, Arjun Reddy, Kavita Desai, Sunil Banerjee, Imran Khan, Ayesha Siddiqui, Bilal
    Chaudhry, Farah Qureshi, Ahmed Hassan, Fatima El-Sayed, Omar Abdullah, Layla Haddad, Yusuf Mansour, Khalid
    Al-Rashid, Nadia Benali, Tariq Mahmoud, Reza Hosseini, Shirin Ahmadi, Wei Zhang, Xiaoming Li, Mei-Ling Chen,
    Jun Wang, Hui Liu, Yan Huang, Kwok-Wai Cheung, Siu-Ming Leung, Min-Jun Kim, Ji-Woo Park, Seung-Hyun Choi,
    Haruto Tanaka, Yuki Nakamura, Kenji Watanabe, Sakura Yamamoto, Nguyen Thanh, Linh Tran, Duc Pham, Somchai
    Wongsawat, Maria Santos, Jose Reyes, Chidi Okonkwo, Ngozi Adeyemi, Kwame Mensah, Abena Owusu, Thabo Nkosi,
    Zanele Dlamini, Wanjiru Kamau, Tendai Moyo, Abebe Tesfaye, Hans Müller, Jürgen Schröder, Ursula Weiß, Heike
    Schäfer, Wolfgang Köhler, Sabine Hoffmann, Dieter Krüger, Annegret Zimmermann, Karl-Heinz Böhm, Ulrich Vogt,
    Birgit Neumann, Matthias Lindner, Jan van der Berg, Pieter de Vries, Sanne van Dijk, Willem ter Horst, Femke
    Bakker, Joost van den Heuvel, Ludwig von Hohenstein, Maria de la Cruz, Juan Garcia-Lopez, Carlos Rodríguez,
    Lucía Fernández, José Martínez, Elena Sánchez, Javier Núñez, Pilar Ibáñez, Sofía Gutiérrez, Alejandro
    Domínguez, Beatriz Peña, Ignacio Echeverría, Rocío Velázquez, Xavier Puig, Montserrat Ferrer, João Silva,
    Inês Carvalho, Thiago Oliveira, Luiza Gonçalves, Marco Rossi, Giulia Bianchi, Luca D'Angelo, Francesca
    Esposito, Matteo Colombo, Chiara Ricci, Jean Dupont, François Lefèvre, Élodie Moreau, Jean-Pierre Bernard,
    Chloé Girard, Mathieu Boucher, Amélie Rousseau, Geneviève Tremblay, Benoît Gagnon, Thérèse Lavoie, Guillaume
    Le Goff, Hélène du Bois, Piotr Kowalski, Agnieszka Nowak, Katarzyna Wiśniewska, Zbigniew Szymański, Pavel
    Novák, Jana Svobodová, Ivana Horvat, Goran Petrović, Milica Jovanović, Dimitrios Papadopoulos, Eleni
    Georgiou, Ivan Petrov, Olga Ivanova, Sergei Kuznetsov, Tatiana Volkova, Oksana Shevchenko, Armen Sarkisian,
    Lars Eriksson, Astrid Johansson, Bjørn Hansen, Ingrid Søndergaard, Åsa Lindqvist, Mikko Virtanen, Aino
    Korhonen, Jón Sigurðsson, Mehmet Yılmaz, Ayşe Demir, Zeynep Çelik, László Szabó, Katalin Tóth, Ioana
    Popescu, Keisha Washington, Ebony Robinson, Marcus Bell, Guadalupe Mendoza, DeShawn Booker, Tyrone
    Jefferson, Latoya Freeman, Kalani Kealoha, Winona Begay, Brandon Kowalchuk, Tiffany Nguyen, Derek
    Hutchinson, Monica Alvarez, Gregory Pruitt, Natalie Frost, Harpreet Dhillon, Gurinder Sandhu, Ravi
    Subramanian, Nisha Chatterjee, Aleksandra Zielińska, Tomasz Wójcik, Hyejin Yoon, Tae-Yang Shin, Qing Xu,
    Zhiyuan Feng, Takeshi Fujimoto, Aiko Mori, Emeka Nwosu, Folake Adebayo, Nomvula Khumalo, Mohamed Farouk,
    Samira Bouzid, Laszlo Kovacs, Björn Lindgren, Freya Nilsen, Gerhard Pfeiffer, Liesel Baumgartner, Bas van
    Leeuwen, Annelies de Jong, Thierry Marchand, Océane Dubois, Ximena Castañeda, Rodrigo Quintana, Leticia
    Figueroa, Paolo Ferrari, Giovanna Mancini, Marek Dvořák, Danijela Babić, Stavros Nikolaidis, Artem
    Bondarenko, Yulia Sokolova, Caitlin O'Donnell, Angus McTavish, Mark Street, Grace Field, Rose Bishop, Art
    Little, Joy Short, Will Price, Oluwaseun Bakare, Tuan Bui, Mei Tanaka, Elif Kaya, Burak Öztürk, Nasser
    Al-Otaibi, Rania Khoury, Dov Mizrahi, Esther Blumenfeld, Quentin Fairweather
"""
NAMES = [" ".join(name.split()) for name in FULL_NAMES.split(",")]
STOP_WORDS = "a an and are as at be been by for from has in is it its of on or that the there to was were with"
PARTICLES = {"van", "der", "den", "de", "la", "du", "ter", "von", "le", "el", "al"}

# F full name, S family name, I initial and family name, C family name, given name
WITH_CUE = """
    These findings were discussed with F on the phone.
    Critical result conveyed to Dr. F at 14:20.
    Preliminary read by I, MD
    Transcribed by: C
    Attending radiologist: S
    Electronically signed: F, M.D., FRCR
    Reviewed with fellow S prior to dictation.
    Chest tube was pulled back per Nurse S this morning.
    F, PA-C was paged with these results.
    F was made aware of the misplaced tube.
    Telefonisch mitgeteilt an Oberarzt Dr. S.
    Comentado con la Dra. F por teléfono.
    Compte rendu signé par le Professeur F
    Dr. S acknowledged receipt of the result.
    Ordering provider: C
    Resident: I
    Dictated and authenticated by F
    Mrs. F asked for a repeat film.
    Comparison is made at the request of Dr. F.
    Images interpreted by I, DO, and C, MD.
    Spoke to F regarding line position.
    Verbal report given to S, RN.
    Requested by Prof. Dr. med. F.
    The ER physician, F, was called at 9 pm.
    Signed by F MBBS FRCPC
    Herr Dr. S wünscht Kontrolle.
    cc: F
    Finding relayed to I in the emergency department.
    Report called to Dr. F in the ICU.
    Results texted to S, NP
    F was notified of the finding.
    The case was discussed by the on-call team with Dr. F.
    Read By: F M.D.
    DICTATED BY: C
    Dr. F agrees.
    Final report approved by I
    Findings telephoned to nurse S at 0830.
    Sonographer: F
    Requesting clinician F
    Attending physician of record C
    As discussed with I, follow up is advised.
    Findings were relayed to the covering resident, F.
    Wet read given to Ms. F.
    Interpreting radiologist F, FRCR
    Dictado por: F
    Befundender Arzt: Dr. F
    Médecin prescripteur : Dr F
"""
WITHOUT_CUE = """
    Line repositioned by F overnight.
    F saw the film before discharge.
    Position was accepted by F.
    Film shown to F in the unit.
    Drain exchanged by I on the ward.
    In the opinion of F the tip is satisfactory.
    Follow-up in the clinic of F advised.
    Images hung for F at the conference.
    F thinks the line is fine.
    Line adjusted by F.
    Shown to F at rounds.
    Patient of F with stable film.
    Procedure done with F present.
    Second opinion from F pending.
"""
LONELY = """
    No change (S).
    S
    w/ S: stable film.
    Small nodule noted by S on the prior.
    Compared with the prior by S.
    Tube placed by S at noon.
    Stable; S.
"""
CASES: dict[str, Callable[[str], str]] = {"mixed": str, "upper": str.upper, "lower": str.lower}

SENTENCES = """
    Small left effusion with adjacent atelectasis.
    White lung on the right, likely complete collapse.
    The long bones are unremarkable.
    Young patient with hyperinflated lungs.
    Blunting of the left costophrenic angle, a small amount of fluid.
    Hilar enlargement, more on the right.
    The heart size is at the upper limit of normal.
    Mild interstitial edema with Kerley B lines.
    Swan-Ganz catheter tip in the right pulmonary artery.
    Dobhoff tube has its tip in the gastric body.
    Right Port-A-Cath ends at the cavoatrial junction.
    Hickman line in unchanged position.
    Mediastinal widening, known Hodgkin lymphoma.
    Bochdalek hernia at the left base.
    Colon between liver and diaphragm, Chilaiditi sign.
    Right apical mass, a Pancoast tumor is suspected.
    Calcified Ghon focus in the right mid zone.
    Focal oligemia, Westermark sign cannot be excluded.
    Pleural based wedge opacity, Hampton hump.
    Golden S sign with right upper lobe collapse.
    Air crescent around a mass, Monod sign.
    Left upper lobe collapse with Luftsichel.
    A Morgagni hernia is seen at the right cardiophrenic angle.
    Westermark sign and Fleischner sign were looked for.
    Swyer-James syndrome with a small lucent left lung.
    St. Jude valve in mitral position.
    Jackson-Pratt drain projects over the right upper quadrant.
    Greenfield filter is partly seen.
    Median sternotomy wires and a Medtronic pacemaker.
    Lungs were reviewed in lung windows and bone windows.
    Chest CT may be obtained with contrast per protocol.
    Compared with the prior film there is less consolidation.
    Nodule previously called a granuloma is stable.
    The opacity reported on the prior study has resolved.
    Findings are given to represent mild congestion.
    Tube placed by the stomach bubble, advance by 5 cm.
    No free air under the diaphragm.
    Endotracheal tube is 4 cm above the carina.
    NG tube courses below the diaphragm and out of view.
    Right PICC line with tip in the lower SVC.
    Left IJ catheter ends in the brachiocephalic vein.
    Low lung volumes with crowding of vessels.
    Bibasilar opacities, atelectasis versus aspiration.
    Patchy airspace disease in the right lower lobe.
    Moderate cardiomegaly without overt edema.
    Large right pneumothorax with shift of the mediastinum.
    Emphysematous changes and flattened diaphragms.
    Old healed rib fractures on the left.
    Degenerative changes of the thoracic spine.
    Tortuous aorta with calcified arch.
    Cavitary lesion in the left upper lobe, tuberculosis is possible.
    Miliary nodules throughout both lungs.
    Diffuse reticular markings with honeycombing at the bases.
    Air bronchograms within dense consolidation.
    Elevated right hemidiaphragm, unchanged.
    Skin folds mimic a pneumothorax line.
    Surgical clips in the left axilla after mastectomy.
    Scoliosis limits the view of the left base.
    The hila are of normal size and contour.
    Peribronchial cuffing suggests viral infection.
    Rounded density behind the heart, hiatal hernia.
    Bulla at the right apex with a thin wall.
    Vascular redistribution to the upper zones.
    Film is rotated and the exposure is low.
    Marked improvement of the pulmonary edema.
    Pleural plaques with calcification, asbestos exposure.
    Right middle lobe infiltrate, pneumonia in the proper setting.
    Tracheostomy tube in good position.
    ECG leads overlie the chest wall.
    COPD with bullous change, no acute disease.
    Wegener granulomatosis with several thick walled cavities.
    Kaposi sarcoma involves both lungs.
    Heimlich valve and chest tube on the right.
    Impella device and intra-aortic balloon pump in place.
    Ranke complex, nothing acute.
    GERD with a patulous esophagus.
    Rose thorn like spicules and a green stick fracture of the clavicle.
    Follow up film in April or May is advised.
    Edema is noted by ultrasound, suggested by congestion.
    Lungs w/out effusion, w/ small nodules (granulomas).
    1 Bronchiectasis 2 Hydropneumothorax 3 Chest 2 Views.
"""


class Planted(NamedTuple):
    """How many planted names left nothing behind, and what the others left."""

    n_gone: int
    n_names: int
    left: dict[str, list[str]]
    """Sentence -> what is left of the name."""

    def __str__(self) -> str:
        return f"{self.n_gone} of {self.n_names} names gone ({self.n_gone / self.n_names:.4f}), left: {self.left}"


def lines(block: str) -> list[str]:
    return [line.strip() for line in block.strip().splitlines()]


def filled(carrier: str, name: str) -> str:
    given, family = name.split(" ", 1)
    forms = {"F": name, "S": family, "I": f"{given[0]}. {family}", "C": f"{family}, {given}"}
    return re.sub(r"(?<!-)\b[FSIC]\b", lambda form: forms[form.group()], carrier)


def parts(name: str) -> set[str]:
    return {part for part in words(name) if len(part) > 1} - PARTICLES


def words(phrase: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", phrase.lower()))


def report(sentence: str, carried: str, turn: int) -> str:
    """A report with a finding and a sentence that carries a name, the one before the other or the reverse."""
    if turn % 3 == 2 and carried.endswith("."):
        return f"{carried} {sentence}"
    return f"{sentence}{chr(10) if turn % 3 else ' '}{carried}"


def planting(i: int, name: str, carriers: list[str]) -> list[tuple[str, str]]:
    """The name's sentence and the report around it, for `K` patients with findings that do not hold its words."""
    carried = filled(carriers[i % len(carriers)], name)
    free = [sentence for sentence in lines(SENTENCES) if not parts(name) & words(sentence)]
    return [(carried, report(free[(i * K + patient) % len(free)], carried, patient)) for patient in range(K)]


@cache
def planted(carriers: str, case: str) -> Planted:
    """What is left of the names in three cohorts; in each a name has one carrier, so that no other tells of it."""
    n_gone, n_names, left = 0, 0, {}
    for turn in range(3):
        turned = lines(carriers)[turn * 3 :] + lines(carriers)[: turn * 3]
        rows = [(name, *row) for i, name in enumerate(NAMES) for row in planting(i, name, turned)]
        texts = [CASES[case](text) for text in [text for _, _, text in rows] + lines(SENTENCES) * K]
        phrases = scrub(texts, [str(i) for i in range(len(texts))], K).phrases
        for (name, carried, _), own in zip(rows, phrases, strict=False):
            found = parts(name) & words(" ".join(own))
            n_names, n_gone = n_names + 1, n_gone + (not found)
            if found:
                left[carried] = sorted(found)
    return Planted(n_gone, n_names, left)


def lost(case: str) -> tuple[list[str], int]:
    """The words of findings that are lost though no name is near, and how many words there are."""
    texts = [CASES[case](line) for line in lines(SENTENCES)]
    phrases = scrub(texts * K, [str(i) for i in range(len(texts) * K)], K).phrases
    content = [
        (word, row) for row, text in enumerate(texts) for word in words(text) - words(STOP_WORDS) if len(word) > 1
    ]
    return [word for word, row in content if word not in words(" ".join(phrases[row]))], len(content)


@pytest.mark.parametrize(
    ("carriers", "case", "floor"),
    [
        (WITH_CUE, "mixed", 0.99),
        (WITH_CUE, "upper", 0.99),
        (WITH_CUE, "lower", 0.99),
        (WITHOUT_CUE, "mixed", 0.99),
        (WITHOUT_CUE, "upper", 0.93),  # no cue and no capital: only lists and places tell of names
        (WITHOUT_CUE, "lower", 0.93),
        (LONELY, "mixed", 0.90),  # only names on the lists, as any word may stand there
        (LONELY, "upper", 0.87),
        (LONELY, "lower", 0.83),
    ],
    ids=lambda value: {WITH_CUE: "with cue", WITHOUT_CUE: "without cue", LONELY: "alone"}.get(value, str(value)),
)
def test_names_of_staff_leave_nothing_behind(carriers, case, floor):
    names = planted(carriers, case)
    print(names)
    assert len(NAMES) >= 200
    assert names.n_gone >= floor * names.n_names, str(names)


@pytest.mark.parametrize("case", CASES)
def test_findings_keep_their_words(case):
    words_lost, n_words = lost(case)
    assert n_words > 400
    assert len(words_lost) <= 0.005 * n_words, words_lost


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("Small left effusion. Discussed with John Smith at 10:30 am.", ["small left effusion"]),
        ("White lung, per Nurse Kelly", ["white lung"]),
        ("Dictated by: SMITH, JOHN\nLong bones intact.", ["long bones intact"]),
        ("Clear lungs.\nATTENDING: Garcia-Lopez\nElectronically signed by Anna-Maria O'Neil", ["clear lungs"]),
        ("Effusion. Read by: J. Smith, MD. No pneumothorax.", ["effusion", "no pneumothorax"]),
        ("effusion. reviewed with resident patel. clear apices", ["effusion", "clear apices"]),
        ("EFFUSION. JANE DOE, R.N. WAS PAGED AT 3 P.M. CLEAR APICES", ["effusion", "clear apices"]),
        ("Erguss links. Telefonisch mitgeteilt an OA Dr. med. Jürgen Müller.", ["erguss links"]),
        ("Derrame pequeño. Comentado con la Dra. María de la Cruz.", ["derrame pequeño"]),
        ("1. Small effusion. 2. Told Mr Smith. 3. Stable nodule.", ["small effusion", "stable nodule"]),
        ("Seen on MR images, no MS plaque", ["seen on mr images", "no ms plaque"]),
        ("Effusion per J.S. since prior", ["effusion per", "since prior"]),
        ("Findings discussed above. Small effusion", ["findings discussed above", "small effusion"]),
        (
            "Reviewed in lung windows, compared with the prior",
            ["reviewed in lung windows", "compared with the prior"],
        ),
    ],
)
def test_a_phrase_about_staff_goes_and_its_neighbours_stay(told, left):
    assert scrub([told], ["1"], k=1).phrases == [left]


def test_a_name_learned_from_one_report_goes_from_all():
    texts = ["Clear. FINDINGS: old. IMPRESSION: Clear.\nRADIOLOGIST: Zyxwyn", "seen with zyxwyn, clear apices"]
    scrubbed = scrub(texts, ["1", "2"], k=1)
    assert "zyxwyn" not in " ".join(" ".join(row) for row in scrubbed.phrases)
    assert scrubbed.removed["name of a person"] == 1


def test_capitals_of_german_nouns_are_no_names():
    texts = [
        "Kleiner Erguss links mit Dystelektase der Lunge und Stauung im Hilus sowie Kardiomegalie ohne Infiltrat."
    ]
    phrase = "kleiner erguss links mit dystelektase der lunge und stauung im hilus sowie kardiomegalie ohne infiltrat"
    assert scrub(texts, ["1"], k=1).phrases == [[phrase]]


def test_what_is_removed_for_staff_is_counted():
    removed = scrub(["Effusion. Discussed with Dr. Smith. Seen by John Long."], ["1"], k=1).removed
    assert removed == {"phrase about staff": 1, "name of a person": 1}


def test_the_phantoms_reports_lose_nothing(monkeypatch):
    listed = phantom.listing(config.Phantom(n_patients=300), 0)
    texts, patients = listed["text"].to_pylist(), listed["patient"].to_pylist()
    scrubbed = [scrub(texts, patients, k) for k in (1, K)]
    monkeypatch.setattr(text, "without_staff", lambda texts, _reports, _removed: texts)
    assert scrubbed == [scrub(texts, patients, k) for k in (1, K)]
