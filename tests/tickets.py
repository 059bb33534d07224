"""A made-up table of support tickets: customers with few favourite queues, texts that tell the queue only in part."""

import random
from datetime import datetime, timedelta

GERMAN = {
    "columns": ("ticket", "kunde", "eingang", "anfrage", "warteschlange"),
    "names": "Kunde {}",
    "queues": {
        "Rechnung": ["Rechnung", "Mahnung", "Betrag", "Lastschrift", "Gutschrift"],
        "Lieferung": ["Paket", "Zustellung", "Versand", "Spedition", "Lieferschein"],
        "Technik": ["Absturz", "Anmeldung", "Fehlermeldung", "Passwort", "Schnittstelle"],
        "Vertrag": ["Kündigung", "Laufzeit", "Tarif", "Verlängerung", "Vertrag"],
        "Rückgabe": ["Retoure", "Umtausch", "Rücksendung", "Erstattung", "Widerruf"],
        "Beratung": ["Empfehlung", "Vergleich", "Angebot", "Eignung", "Produktfrage"],
    },
    "said": [
        "Guten Tag, zu meiner Bestellung {}: {} ist unklar, bitte prüfen Sie das.",
        "Hallo, seit {} Tagen warte ich auf eine Antwort; es geht um {}.",
        "Wir benötigen Hilfe mit Vorgang {} ({}), vielen Dank für Ihre Mühe.",
        "Können Sie mir erklären, was bei Nummer {} mit {} passiert ist?",
    ],
    "vague": ["meine Frage von gestern", "das bekannte Problem", "unser Anliegen", "die Sache am Telefon"],
}
JAPANESE = {
    "columns": ("番号", "顧客", "受付日", "本文", "窓口"),
    "names": "顧客{}",
    "queues": {
        "請求": ["請求書", "支払い", "引き落とし", "領収書"],
        "配送": ["荷物", "配達", "発送", "送り状"],
        "技術": ["不具合", "ログイン", "エラー", "接続"],
        "契約": ["解約", "更新", "料金プラン", "契約書"],
        "返品": ["返品", "交換", "返金", "返送"],
        "相談": ["おすすめ", "比較", "見積もり", "商品の質問"],
    },
    "said": [
        "注文{}について、{}の件を確認してください。",
        "{}日前から待っています。{}についてお願いします。",
        "番号{}の{}はどうなりましたか。",
    ],
    "vague": ["昨日の質問", "いつもの問題", "電話で話した件"],
}


def tickets(language, customers=150, each=20, seed=0):
    """Rows of a table as mappings, in no order."""
    draw = random.Random(seed)
    number, who, when, what, where = language["columns"]
    queues, rows = list(language["queues"]), []
    for customer in range(customers):
        liked = draw.sample(queues, 2)
        day = datetime(2023, 1, 1) + timedelta(days=draw.randrange(200))
        for _ in range(each):
            day += timedelta(days=draw.randrange(1, 20), minutes=draw.randrange(600))
            queue = draw.choice(liked) if draw.random() < 0.8 else draw.choice(queues)
            about = draw.choice(language["queues"][queue] if draw.random() < 0.5 else language["vague"])
            text = draw.choice(language["said"]).format(draw.randrange(100, 10_000), about)
            names = language["names"].format(customer + 1)
            rows.append({number: "", who: names, when: f"{day:%d.%m.%Y %H:%M}", what: text, where: queue})
    draw.shuffle(rows)
    return [{**row, number: f"T-{place:05d}"} for place, row in enumerate(rows)]
