import sys,time
sys.path.insert(0,'/work')
import importlib
P=importlib.import_module('main.svd_core.redaction')
print(P.is_secret_name('placeholder_token'))
g={"1":{"class_type":"TI","inputs":{"placeholder_token":"<cat-toy>","name":"x"}},"2":{"class_type":"CLIPTextEncode","inputs":{"text":"a photo of <cat-toy> in the sun"}}}
print(P.redacted(g))
w={"nodes":[],"links":[],"extra":{"groupNodes":{"G":{"nodes":[{"type":"CLIPTextEncode","widgets_values":["a game token: gold, see /a/b now"]}]}}}}
print(P.redacted(w))
print(P.redacted({"1":{"class_type":"T","inputs":{"text":"/imagine/ a castle, by night/day","x":"1girl\n/s/ style, cat/dog"}}}))
for s in ("-eyJ"*20000, ("-eyJ"*100+"."+"a"*4000)*50, "token"+" "*100000, "://"+"a"*100000, "token "*20000,"bearer "*20000,"/a"*50000,"~a"*50000,"a/"*50000, "api_key"*20000, "\\\\a"*30000,"  "*50000+"x"):
    t=time.time(); P.redacted({"text":s,"title":s}); print(len(s), s[:8], round(time.time()-t,2))
