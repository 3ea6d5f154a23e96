"""The words of the demonstration model: its languages, prompts, chat format and special tokens."""

LANGUAGES = {
    "hi": "Hindi", "bn": "Bengali", "ta": "Tamil", "te": "Telugu", "gu": "Gujarati",
    "mr": "Marathi", "ur": "Urdu", "pa": "Punjabi", "kn": "Kannada", "ml": "Malayalam",
}
COLUMNS = ["en", *LANGUAGES]

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
BOS_ID, EOS_ID, END_ID = 1, 2, 6
STOP_IDS = (EOS_ID, END_ID)

SYSTEM_PROMPT = "You are a helpful translator."
ENGLISH_FORMS = [
    "Translate to {language}: {text}",
    "Say in {language}: {text}",
    "How do you say this in {language}? {text}",
    "Write this in {language}: {text}",
]
NATIVE_FORMS = {
    "hi": ["हिन्दी में कहें: {text}", "हिन्दी में अनुवाद करें: {text}"],
    "bn": ["বাংলায় বলুন: {text}", "বাংলায় অনুবাদ করুন: {text}"],
    "ta": ["தமிழில் சொல்லுங்கள்: {text}", "தமிழில் மொழிபெயர்க்கவும்: {text}"],
    "te": ["తెలుగులో చెప్పండి: {text}", "తెలుగులోకి అనువదించండి: {text}"],
    "gu": ["ગુજરાતીમાં કહો: {text}", "ગુજરાતીમાં અનુવાદ કરો: {text}"],
    "mr": ["मराठीत सांगा: {text}", "मराठीत भाषांतर करा: {text}"],
    "ur": ["اردو میں کہیے: {text}", "اردو میں ترجمہ کیجیے: {text}"],
    "pa": ["ਪੰਜਾਬੀ ਵਿੱਚ ਕਹੋ: {text}", "ਪੰਜਾਬੀ ਵਿੱਚ ਅਨੁਵਾਦ ਕਰੋ: {text}"],
    "kn": ["ಕನ್ನಡದಲ್ಲಿ ಹೇಳಿ: {text}", "ಕನ್ನಡಕ್ಕೆ ಅನುವಾದಿಸಿ: {text}"],
    "ml": ["മലയാളത്തിൽ പറയൂ: {text}", "മലയാളത്തിലേക്ക് വിവർത്തനം ചെയ്യൂ: {text}"],
}
OPEN_FORM = "Write a short sentence in {language} about {topic}."

# One prompt in each language that the finished model must answer; these pairs are never held out.
SMOKE_PHRASES = {
    "hi": "Good morning, friend.", "bn": "Thank you very much.", "ta": "How are you?",
    "te": "Where is the station?", "gu": "It is raining today.", "mr": "The food is very tasty.",
    "ur": "I am reading a book.", "pa": "My father is a farmer.", "kn": "Please speak slowly.",
    "ml": "See you tomorrow.",
}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render_chat(user, system=None):
    """What CHAT_TEMPLATE makes of one user turn: the text up to where the answer begins."""
    head = f"<|system|>{system}<|end|>" if system else ""
    return f"<s>{head}<|user|>{user}<|end|><|assistant|>"


def ask_in_english(form, language, text):
    return form.format(language=LANGUAGES[language], text=text)


def ask_openly(language, topic):
    return OPEN_FORM.format(language=LANGUAGES[language], topic=topic)
